"""The recipe of MONAI's model zoo (spleen CT) for `benchmarks/accuracy.py`, written anew from MONAI's public classes.

As the zoo's bundle has it: U-Net of 16 to 256 channels with two residual units and batch norm, Dice and cross entropy,
Novograd at 0.002 (or, with `--optimizer adam`, Adam at 0.0001 as in the bundle's first versions), four crops a case,
half of them on foreground, two cases a step, no other augmentation, best weights by validation, half-overlapping
windows. The zoo's `StepLR` does not act within its 800 epochs, so it is left out.

From our own recipe come spacing, intensity and patch size, the latter rounded up to multiples of 16, which the network
asks for. Ten validations are spread over the training, and are within the budget as ours are.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import CheckpointSaver, MeanDice, ValidationHandler, from_engine
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.optimizers import Novograd
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandCropByPosNegLabeld,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism
from torch import Tensor, nn

VALIDATIONS = 10


def main() -> None:
    """Time an epoch, train as many as the budget holds, predict; `training.json` says how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="in nnU-Net's raw layout")
    parser.add_argument("--recipe", type=Path, nargs="+", required=True, help="ours, for spacing, intensity and patch")
    parser.add_argument("--job_dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mirroring", action="store_true")
    parser.add_argument("--optimizer", choices=("novograd", "adam"), default="novograd")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    set_determinism(settings.seed)

    zoo = Zoo(settings)
    epoch_s, validation_s = zoo.calibrated()
    budget_s = 60 * settings.minutes
    validations = min(VALIDATIONS, max(1, int(budget_s / (epoch_s + validation_s))))
    epochs = max(1, int((budget_s - validations * validation_s) / epoch_s))
    trainer, network, train_s = zoo.trained(epochs, val_interval=math.ceil(epochs / validations))
    network.load_state_dict(torch.load(settings.job_dir / "best.pt", weights_only=True))
    began = time.perf_counter()
    zoo.predict(network.eval(), settings.job_dir / "masks", mirroring=settings.mirroring)
    figures = {
        "train_s": train_s,
        "predict_s": time.perf_counter() - began,
        "epochs": epochs,
        "iterations": trainer.state.iteration,
        "calibrated_epoch_s": epoch_s,
        "patch_size": zoo.patch_size,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    (settings.job_dir / "training.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


class Zoo:
    """The zoo's parts on one data set, read once."""

    def __init__(self, settings: argparse.Namespace) -> None:
        recipe: dict[str, Any] = {}
        for path in settings.recipe:
            recipe |= json.loads(path.read_text(encoding="utf-8"))
        self.settings, self.classes = settings, recipe["out_channels"]
        self.patch_size = [16 * math.ceil(length / 16) for length in recipe["patch_size"]]
        self.spacing_mm, self.intensity = recipe["spacing_mm"], intensity(recipe["intensity"])
        self.inferer = SlidingWindowInferer(self.patch_size, sw_batch_size=4, overlap=0.5)
        split = json.loads((settings.dataset_dir / "splits_final.json").read_text(encoding="utf-8"))[0]
        keys = ["image", "label"]
        crops = RandCropByPosNegLabeld(keys, "label", self.patch_size, num_samples=4, image_key="image")
        training, whole = self.preprocessing(keys), self.preprocessing(keys)
        self.training = CacheDataset(self.cases(split["train"]), Compose([training, crops]), progress=False)
        self.validation = CacheDataset(self.cases(split["val"]), whole, progress=False)

    def cases(self, case_ids: Sequence[str]) -> list[dict[str, str]]:
        """Paths of labeled cases."""
        root = self.settings.dataset_dir
        return [
            {"image": f"{root / 'imagesTr' / case_id}_0000.nii.gz", "label": f"{root / 'labelsTr' / case_id}.nii.gz"}
            for case_id in case_ids
        ]

    def preprocessing(self, keys: Sequence[str]) -> Compose:
        """Onto the training's grid and intensities, padded to a patch at least."""
        return Compose(
            [
                LoadImaged(keys),
                EnsureChannelFirstd(keys),
                Orientationd(keys, axcodes="RAS", labels=None),
                Spacingd(keys, pixdim=self.spacing_mm, mode=["bilinear", "nearest"][: len(keys)]),
                self.intensity,
                SpatialPadd(keys, self.patch_size),
                EnsureTyped(keys),
            ]
        )

    def calibrated(self) -> tuple[float, float]:
        """Seconds of an epoch and of a validation."""
        _, _, both_s = self.trained(1, val_interval=1)
        _, _, epoch_s = self.trained(1, val_interval=2)
        return epoch_s, max(0.0, both_s - epoch_s)

    def trained(self, epochs: int, *, val_interval: int) -> tuple[SupervisedTrainer, nn.Module, float]:
        """A new training to its end; the seconds count validations too. The best weights are left in `best.pt`."""
        network = UNet(3, 1, self.classes, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")
        device = torch.device("cpu")
        saver = CheckpointSaver(
            str(self.settings.job_dir),
            {"model": network},
            save_key_metric=True,
            key_metric_filename="best.pt",
        )
        evaluator = SupervisedEvaluator(
            device,
            DataLoader(self.validation, batch_size=1),
            network,
            inferer=self.inferer,
            postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=self.classes),
            key_val_metric={
                "dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
            },
            val_handlers=[saver],
        )
        trainer = SupervisedTrainer(
            device,
            epochs,
            DataLoader(self.training, batch_size=2, shuffle=True),
            network,
            optimizer(self.settings.optimizer, network),
            DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True, lambda_dice=0.5, lambda_ce=0.5),
            train_handlers=[ValidationHandler(val_interval, evaluator)],
        )
        started = time.perf_counter()
        trainer.run()
        train_s = time.perf_counter() - started
        if evaluator.state.epoch == 0 and val_interval <= epochs:
            raise RuntimeError("no validation took place")
        return trainer, network, train_s

    def predict(self, network: nn.Module, masks_dir: Path, *, mirroring: bool) -> None:
        """Segment `imagesTs`: logits go back to the scan's own grid, then the largest wins."""
        masks_dir.mkdir()
        preprocessing = self.preprocessing(["image"])
        back = Compose([Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False), argmax])
        images = [{"image": str(path)} for path in sorted((self.settings.dataset_dir / "imagesTs").glob("*.nii.gz"))]
        for batch in DataLoader(Dataset(images, preprocessing), batch_size=1):
            with torch.inference_mode():
                batch["pred"] = self.inferer(batch["image"], mirrored(network) if mirroring else network)
            sample = back(decollate_batch(batch)[0])
            path = Path(sample["image"].meta["filename_or_obj"])
            affine = nib.load(path).affine
            mask = nib.Nifti1Image(sample["pred"], affine)
            nib.save(mask, masks_dir / path.name.replace("_0000.nii.gz", ".nii.gz"))


def intensity(settings: Mapping[str, Any]) -> ScaleIntensityRanged | NormalizeIntensityd:
    """MONAI's form of our recipe's intensity."""
    if settings["_target_"].endswith("Window"):
        return ScaleIntensityRanged("image", settings["low_hu"], settings["high_hu"], 0, 1, clip=True)
    return NormalizeIntensityd("image")


def optimizer(name: str, network: nn.Module) -> torch.optim.Optimizer:
    """As in the zoo's current version, or as in its first ones."""
    if name == "novograd":
        return Novograd(network.parameters(), lr=0.002)
    return torch.optim.Adam(network.parameters(), lr=1e-4)


def argmax(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Logits `(C, *spatial)` of `pred` -> labels."""
    return {**sample, "pred": sample["pred"].argmax(0).numpy().astype(np.uint8)}


def mirrored(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Mean probabilities over all flips, as logits."""

    def forward(image: Tensor) -> Tensor:
        flips = [[axis + 2 for axis in range(3) if number >> axis & 1] for number in range(8)]
        means = [network(image.flip(axes)).softmax(1).flip(axes) for axes in flips]
        return torch.stack(means).mean(0).log()

    return forward


if __name__ == "__main__":
    main()
