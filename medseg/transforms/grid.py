"""Dictionary forms of the way to the working grid and back."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch.nn.functional import pad

from medseg.crf import ScanRule, clean_up
from medseg.postprocessing import CleanupRule, label_maker
from medseg.preprocessing import ImageToGrid, ScanToGrid


class ScanToGridd(Transform):
    """Dictionary form of `ScanToGrid`: the scans under `image` become a `(C, R, A, S)` tensor.

    Args:
        scan_to_grid: the pure step.
        label: `"grid"` brings the label onto the working grid too (training), `"scan"` leaves it on the scan's own
            grid, where predictions are judged.
        keep_scan: keep the first channel's voxels under `scan`, `(1, X, Y, Z)` as read, for clean-up rules that look
            at them; takes their memory in every cached case.
    """

    def __init__(self, scan_to_grid: ScanToGrid | ImageToGrid, label: str = "grid", *, keep_scan: bool = False) -> None:
        if label not in ("grid", "scan"):
            raise ValueError(f'label is "grid" or "scan", got {label!r}.')
        self.scan_to_grid, self.label_on, self.keep_scan = scan_to_grid, label, keep_scan

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with scans -> sample with tensors and the `grid` between them."""
        image, grid = self.scan_to_grid(data["image"])
        sample = {**data, "image": MetaTensor(image, affine=torch.from_numpy(grid.affine)), "grid": grid}
        if self.keep_scan:
            sample["scan"] = torch.from_numpy(data["image"][0].voxels)[None]
        if "label" in data:
            voxels = data["label"].voxels
            sample["label"] = MetaTensor(
                self.scan_to_grid.label(voxels, grid) if self.label_on == "grid" else torch.from_numpy(voxels)[None],
                affine=torch.from_numpy(grid.affine if self.label_on == "grid" else grid.scan_affine),
            )
        return sample


class PadToPatchd(Transform):
    """Pad a case that is smaller than the patch: image with its lowest value, label with `ignore_label`.

    The padding is split between both ends of an axis, as the sliding window does it.

    Args:
        patch_size: smallest size wanted, one length an axis.
        ignore_label: value for the padding of the label; gives no loss.
    """

    def __init__(self, patch_size: Sequence[int], ignore_label: int) -> None:
        self.patch_size, self.ignore_label = tuple(patch_size), ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with `(C, *spatial)` tensors -> sample that is at least `patch_size`; the input stays as it is."""
        missing = [max(0, wanted - size) for wanted, size in zip(self.patch_size, data["image"].shape[1:], strict=True)]
        if not any(missing):
            return dict(data)
        margins = [side for n in reversed(missing) for side in (n // 2, n - n // 2)]
        image = torch.stack([pad(channel, margins, value=float(channel.min())) for channel in data["image"]])
        return {**data, "image": image, "label": pad(data["label"], margins, value=self.ignore_label)}


class LogitsToLabeld(Transform):
    """Logits `(1, C, R, A, S)` under `pred` -> cleaned labels `(1, 1, X, Y, Z)` on the scan's own grid.

    Args:
        cleanup: the recipe's clean-up rules, in order.
        activation: `"softmax"` if the logits are one channel a class, `"sigmoid"` if they are one a region.
        regions: the recipe's, name -> label values; a sigmoid needs them.

    Raises:
        ConfigError: if there is no such activation, or the regions cannot be painted one over the other.
    """

    def __init__(
        self,
        cleanup: Sequence[CleanupRule | ScanRule] = (),
        *,
        activation: str = "softmax",
        regions: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.cleanup, self.to_label = tuple(cleanup), label_maker(activation, regions or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with logits and `grid`, and `scan` `(1, 1, X, Y, Z)` if a rule needs it -> sample with labels.

        Raises:
            ConfigError: if a rule needs the scan and the sample does not have it.
        """
        grid = data["grid"]
        label = self.to_label(torch.as_tensor(data["pred"])[0], grid)
        scan = torch.as_tensor(data["scan"])[0, 0].cpu().numpy() if "scan" in data else None
        label = clean_up(label, grid.scan_affine, self.cleanup, scan)
        return {**data, "pred": torch.from_numpy(label)[None, None]}
