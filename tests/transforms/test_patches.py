"""Patches of compact cases: MONAI's crops, float16 where it holds, and pages that stay on disk."""

import logging
import weakref

import numpy as np
import pytest
import torch
from monai.transforms import ClassesToIndicesd, Compose, RandCropByLabelClassesd, Transform

from medseg.data.cache import CachedCases
from medseg.data.cache_files import packed, unpacked
from medseg.errors import ConfigError, DataError
from medseg.transforms.patches import PLACES_KEY, CompactCased, CropByClassd, class_places, compact_image, draw_starts


def volume(seed: int = 0) -> dict[str, torch.Tensor]:
    label = torch.zeros(1, 19, 23, 16, dtype=torch.uint8)
    label[:, 2:12, 3:20, :9] = 1
    label[:, 4:7, 16:18, 5:8] = 2
    label[:, 18] = 255
    return {"image": torch.rand(2, 19, 23, 16, generator=torch.Generator().manual_seed(seed)), "label": label}


@pytest.mark.parametrize("size", [(8, 7, 5), (19, 22, 16), (9, 8, 1)])
@pytest.mark.parametrize("ratios", [[1, 1, 3], [0, 1, 0], [2, 0, 1, 5]])
def test_the_crops_are_those_of_monai(size: tuple[int, ...], ratios: list[float]) -> None:
    ours = Compose([CompactCased(ratios, most_places=100), CropByClassd(size, ratios, count=3)])
    keys, classes = ("image", "label"), len(ratios)
    crop = RandCropByLabelClassesd(
        keys,
        label_key="label",
        spatial_size=size,
        ratios=ratios,
        num_classes=classes,
        num_samples=3,
        indices_key="label_cls_indices",
        warn=False,
    )
    theirs = Compose([ClassesToIndicesd("label", num_classes=classes, max_samples_per_class=100), crop])
    for seed in range(10):
        ours.set_random_state(seed)
        theirs.set_random_state(seed)
        for own, other in zip(ours(volume()), theirs(volume()), strict=True):
            assert torch.equal(own["image"], torch.as_tensor(other["image"]))
            assert torch.equal(own["label"], torch.as_tensor(other["label"]))


def test_places_are_few_and_spread_over_the_class() -> None:
    label = np.repeat(np.array([0, 1], np.uint8), 50)
    none, some = class_places(label, 2, most=1000)[0], class_places(label, 2, most=6)[1]
    assert none.tolist() == list(range(50))
    assert some.tolist() == [50, 60, 70, 79, 89, 99]  # every 9.8th from first to last
    assert some.dtype == np.int32


def test_a_case_without_any_class_that_is_asked_for_is_refused() -> None:
    places = [np.array([0]), np.array([], int)]
    with pytest.raises(DataError, match=r"no voxel of a class that class_ratios \[0, 1\] asks for; give a class"):
        draw_starts(places, (3, 3), (1, 1), class_ratios=[0, 1], count=1, random=np.random.RandomState(0))


def test_float16_keeps_intensities_between_0_and_1_to_a_4096th() -> None:
    image = torch.linspace(0, 1, 100_001)
    kept = compact_image(image)
    assert kept.dtype == torch.float16
    assert float((kept.float() - image).abs().max()) <= 1 / 4096


@pytest.mark.parametrize(
    "image",
    [
        torch.tensor([0.0, 1.0, 70_000.0]),  # more than float16 can hold
        30_000 + torch.linspace(-5, 5, 50),  # steps of 16 there
    ],
)
def test_what_float16_would_spoil_stays_in_float32_and_says_so(image: torch.Tensor, caplog) -> None:
    caplog.set_level(logging.WARNING)
    sample = {"image": image.view(1, -1, 1, 1), "label": torch.zeros(1, len(image), 1, 1, dtype=torch.uint8)}
    kept = CompactCased([1], image_precision="float16")(sample)["image"]
    assert torch.equal(kept, sample["image"])
    assert "float16 cannot hold the intensities of a case" in caplog.text


@pytest.mark.parametrize("image", [torch.zeros(5), torch.randn(1000, generator=torch.Generator().manual_seed(0))])
def test_a_flat_image_and_z_scores_fit_float16(image: torch.Tensor) -> None:
    assert compact_image(image).dtype == torch.float16


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="image_precision is 'float8'; use"):
        CompactCased([1], image_precision="float8")  # type: ignore[arg-type]


def test_a_patch_is_a_tensor_of_its_own() -> None:
    case = CompactCased([1, 1, 1])(volume())
    before = case["image"].clone()
    for patch in CropByClassd((4, 4, 4), [1, 1, 1], count=2)(case):
        assert patch["image"].untyped_storage().nbytes() == 2 * 4**3 * 4  # no view that would keep the case
        patch["image"].zero_()
    assert torch.equal(case["image"], before)


def test_a_view_is_stored_without_the_rest_of_what_it_is_a_view_of(tmp_path) -> None:
    torch.save(packed({"image": torch.zeros(1000, 1000)[:2, :2]}), tmp_path / "case.pt")
    assert (tmp_path / "case.pt").stat().st_size < 10_000
    assert unpacked(torch.load(tmp_path / "case.pt", weights_only=True))["image"].shape == (2, 2)


class Prepared(Transform):
    """Makes a case of its own."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, data: dict[str, str]) -> dict[str, torch.Tensor]:
        self.made += 1
        return volume(int(data["case_id"]))


class Counted(Transform):
    """Counts how many of the cases that pass are alive."""

    def __init__(self) -> None:
        self.alive = self.most = 0

    def __call__(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(data["image"], self._gone)
        return data

    def _gone(self) -> None:
        self.alive -= 1


@pytest.fixture
def samples(tmp_path):
    found = []
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(str(number))
        path = str(tmp_path / f"{number}.txt")
        found.append({"image": path, "label": path, "case_id": str(number)})
    return found


def test_cases_on_disk_are_prepared_without_being_gathered_in_memory(samples, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medseg.data.cache.relative_size", len)
    prepared, counted = Prepared(), Counted()
    steps = [prepared, CompactCased([1, 1, 1]), counted, CropByClassd((4, 4, 4), [1, 1, 1], count=2)]
    cases = CachedCases(samples, Compose(steps), cache="disk", cache_dir=tmp_path / "cache", num_workers=1)
    assert prepared.made == len(samples)  # the first one too is prepared once
    assert counted.most <= 3
    cases.transform.set_random_state(0)
    assert [tuple(patch["image"].shape) for patch in cases[3]] == [(2, 4, 4, 4)] * 2
    assert prepared.made == len(samples)


@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_a_case_gives_the_same_patches_wherever_it_is_kept(samples, tmp_path, monkeypatch, precision) -> None:
    monkeypatch.setattr("medseg.data.cache.relative_size", len)
    found = []
    for place in ("memory", "disk", "none"):
        compact = CompactCased([1, 1, 1], image_precision=precision)
        steps = Compose([Prepared(), compact, CropByClassd((4, 4, 4), [1, 1, 3], count=2)])
        cases = CachedCases(samples, steps, cache=place, cache_dir=tmp_path / "cache")
        cases.transform.set_random_state(5)
        found.append(cases[2])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one["image"], two["image"])
            assert torch.equal(one["label"], two["label"])


def test_places_are_kept_as_plain_arrays() -> None:
    case = CompactCased([1, 1, 1])(volume())
    assert set(case) == {"image", "label", PLACES_KEY}
    assert [type(each) for each in case[PLACES_KEY]] == [torch.Tensor] * 3
