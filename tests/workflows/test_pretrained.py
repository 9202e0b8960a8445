from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.networks import UNet
from workflows import pretrained
from workflows.pretrained import matching, start_from


def unet(in_channels: int = 1, out_channels: int = 3) -> nn.Module:
    return UNet(2, in_channels, out_channels, widths=(4, 8))


def test_the_same_network_takes_all_and_there_is_nothing_to_say() -> None:
    source = unet().state_dict()
    fitting, said = matching(source, unet())
    assert fitting.keys() == source.keys()
    assert said == []


def test_another_head_starts_anew_and_is_named() -> None:
    source, network = unet().state_dict(), unet(out_channels=5)
    fitting, said = matching(source, network)
    assert source.keys() - fitting.keys() == {"head.weight", "head.bias"}
    assert said == ["2 of another shape and new (head.weight (3, 4, 1, 1) for (5, 4, 1, 1), head.bias (3,) for (5,))"]


def test_other_channels_get_a_first_convolution_that_sees_equal_channels_as_before() -> None:
    trained, network = unet().eval(), unet(in_channels=3).eval()
    fitting, said = matching(trained.state_dict(), network)
    network.load_state_dict(fitting)
    image = torch.randn(1, 1, 9, 7)
    torch.testing.assert_close(network(image.expand(1, 3, 9, 7) * 1.0), trained(image), atol=1e-5, rtol=1e-4)
    assert said == ["encoder.stages.0.0.0.weight adapted from 1 to 3 channels"]


def test_weights_of_other_networks_are_told() -> None:
    source = unet().state_dict()
    network = UNet(2, 1, 3, widths=(4, 8), deep_supervision=True, blocks_per_level=1)
    fitting, said = matching(source | {"more": torch.zeros(1)}, network)
    assert "head.weight" in fitting
    assert any("of it unused" in part and "(" in part for part in said)


def test_without_a_model_and_when_resumed_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "open_bundle", lambda *_args, **_settings: pytest.fail("opened"))
    start_from(unet(), None)
    start_from(unet(), "runs/a", resume="runs/b")


@pytest.mark.slow
def test_a_training_starts_from_another_run_with_its_own_head(
    phantom: Path, bundle_run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = {"dataset_dir": str(phantom), "device": "cpu", "max_epochs": 1}
    first = bundle_run("training", output_dir=str(tmp_path / "first"), **settings)
    again = bundle_run(
        "training",
        output_dir=str(tmp_path / "again"),
        pretrained_model=str(first),
        out_channels=2,
        labels={"background": 0, "liver": 1},
        regions={"liver": [1]},
        lesion_region="liver",
        flags={"none_found": ["liver"]},
        class_ratios=[1, 1],
        class_weights=[1.0, 1.0],
        **{**settings, "dataset_dir": str(liver_only(phantom, tmp_path))},
    )
    assert "2 of another shape and new (head.weight (3, 4, 1, 1, 1) for (2, 4, 1, 1, 1), head.bias" in caplog.text
    weights = [torch.load(run / "bundle/models/model.pt", weights_only=True) for run in (first, again)]
    assert weights[1]["head.weight"].shape[0] == 2
    with pytest.raises(RuntimeError) as raised:
        bundle_run("training", pretrained_model=str(tmp_path / "absent"), **settings)
    assert "absent" in str(raised.value.__cause__)


@pytest.mark.slow
def test_the_averages_are_judged_and_kept_and_all_parts_of_the_recipe_go_together(
    phantom: Path, bundle_run: Callable[..., Path]
) -> None:
    from workflows.checkpoints import newest_checkpoint

    folder = bundle_run(
        "training",
        "configs/nnunet_schedule.json",
        dataset_dir=str(phantom),
        device="cpu",
        averaging_decay=0.5,
        accumulation_steps=3,
        checkpoint_activations=True,
        channels_last=False,
        patience=1,
        val_interval=2,
        gpu_memory_gb=8,
    )
    state = newest_checkpoint(folder)
    kept = torch.load(folder / "bundle/models/model.pt", weights_only=True)
    assert state["averages"]["updates"] == 4  # two epochs of four batches, three and one an update
    assert kept.keys() == state["network"].keys()
    assert all(torch.equal(kept[name], average) for name, average in state["averages"]["averages"].items())
    assert any(not torch.equal(kept[name], last) for name, last in state["network"].items())
    assert state["optimizer"]["param_groups"][0]["nesterov"]


def liver_only(phantom: Path, tmp_path: Path) -> Path:
    """A copy of the phantom whose tumors are liver."""
    import json
    import shutil

    import numpy as np

    from medseg.reading import read_label
    from medseg.writing import write_nifti

    copy = Path(shutil.copytree(phantom, tmp_path / "liver"))
    for path in (*(copy / "labelsTr").iterdir(), *(copy / "labelsTs").iterdir()):
        label = read_label(path)
        write_nifti(np.minimum(label.voxels, 1).astype(np.uint8), label.affine, path)
    about = json.loads((copy / "dataset.json").read_text())
    about["labels"] = {"0": "background", "1": "liver"}
    (copy / "dataset.json").write_text(json.dumps(about))
    return copy
