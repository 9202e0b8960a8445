import pytest
import torch
from monai.transforms import Compose

from medseg.transforms import augmentation

NOTHING = {"spatial_probability": 0.0, "intensity_probability": 0.0}
CHANGES = {
    "blur": {"blur_probability": 1.0},
    "low resolution": {"low_resolution_probability": 1.0},
    "gamma": {"gamma_probability": 1.0},
    "elastic": {"elastic_probability": 1.0},
}


def patch(spatial_dims):
    """A ball in noise, and where it is."""
    size = (25, 22, 19)[:spatial_dims]
    places = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing="ij"))
    ball = (places.norm(dim=0) < 0.6)[None]
    return {"image": ball * 0.5 + 0.1 * torch.rand(1, *size), "label": ball.to(torch.uint8) * 2}


def changed(sample, spatial_dims, **settings):
    pipeline = Compose(augmentation(spatial_dims, **{**NOTHING, **settings})).set_random_state(seed=5)
    return pipeline(sample)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_change_happens_when_its_probability_asks_for_it(spatial_dims, name):
    sample = patch(spatial_dims)
    before = {key: value.clone() for key, value in sample.items()}
    image = torch.as_tensor(changed(sample, spatial_dims, **CHANGES[name])["image"])
    assert image.shape == before["image"].shape
    assert not torch.allclose(image, before["image"], atol=1e-3)
    assert all(torch.equal(sample[key], before[key]) for key in before)  # the input stays as it is


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_nothing_happens_at_probability_zero(spatial_dims):
    sample = patch(spatial_dims)
    after = changed(sample, spatial_dims)
    assert torch.equal(torch.as_tensor(after["image"]), sample["image"])
    assert torch.equal(torch.as_tensor(after["label"]), sample["label"])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_elastic_change_moves_image_and_label_together(spatial_dims):
    sample = patch(spatial_dims)
    after = changed(sample, spatial_dims, **CHANGES["elastic"])
    label = torch.as_tensor(after["label"]).round().int()
    assert set(label.unique().tolist()) <= {0, 2}
    assert not torch.equal(label, sample["label"].int())
    bright = torch.as_tensor(after["image"]) > 0.35
    assert (bright == (label == 2)).float().mean() > 0.9


@pytest.mark.parametrize("name", ["blur", "low resolution", "gamma"])
def test_a_change_of_intensity_leaves_the_label_alone(name):
    sample = patch(3)
    assert torch.equal(torch.as_tensor(changed(sample, 3, **CHANGES[name])["label"]), sample["label"])


def test_gamma_keeps_mean_and_deviation():
    sample = patch(3)
    image = torch.as_tensor(changed(sample, 3, **CHANGES["gamma"])["image"])
    torch.testing.assert_close(image.mean(), sample["image"].mean(), atol=1e-3, rtol=0)
    torch.testing.assert_close(image.std(), sample["image"].std(), atol=1e-3, rtol=0)


def test_blur_makes_neighbors_alike():
    sample = patch(3)
    after = torch.as_tensor(changed(sample, 3, **CHANGES["blur"])["image"])
    assert after.diff(dim=1).abs().mean() < 0.7 * sample["image"].diff(dim=1).abs().mean()
