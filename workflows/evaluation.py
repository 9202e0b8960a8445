"""Evaluation: whole cases on their own grids, a table with one row a case."""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.bundle import open_bundle
from medseg.data import Cases, Sample
from medseg.data_half import data_half
from medseg.errors import ConfigError
from medseg.geometry import voxel_volume_ml
from medseg.metrics import count_cases, mean_over_cases, region_overlap
from medseg.preprocessing import Intensity, Window
from medseg.reading import MaskCode, Scan, Unit, read_channels, read_label
from medseg.report.pictures import curves_picture, image_picture, overlay_picture
from workflows import distributed, recipe
from workflows.card import write_card
from workflows.experiment import Experiment

logger = logging.getLogger(__name__)

KEY_METRIC = "mean_dice"
PANELS = ("loss", "dice", "learning_rate")  # of the picture of curves
OVERLAP = ("dice", "iou", "pred_ml", "reference_ml")  # columns of the case table, for each region


def one_case(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate a batch of one: tensors get a batch axis, the rest stays as it is."""
    (sample,) = samples
    return {key: value[None] if isinstance(value, Tensor) else value for key, value in sample.items()}


def labeled_cases(cases: Cases) -> list[Sample]:
    """The held-out cases that have a label; where there are none, the validation cases."""
    held_out = [sample for sample in cases.test if "label" in sample]
    if not held_out:
        logger.info("no held-out cases with labels: judging the %d validation cases instead", len(cases.validation))
    return held_out or cases.validation


def judged_split(cases: Cases) -> str:
    """What `labeled_cases` gives: `"held_out"`, or `"best_validation"` for cases that have chosen the model."""
    return "held_out" if any("label" in sample for sample in cases.test) else "best_validation"


@dataclass(frozen=True)
class PackedLabels:
    """A label map in little memory: which case is the median one is known only when all are judged.

    Attributes:
        shape: of the whole map.
        box: the part outside of which all is 0.
        content: its compressed values.
    """

    shape: tuple[int, ...]
    box: tuple[slice, ...]
    content: bytes

    @classmethod
    def pack(cls, labels: NDArray[np.uint8]) -> "PackedLabels":
        """Pack `(*spatial)`."""
        axes = range(labels.ndim)
        found = [np.flatnonzero(labels.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
        box = tuple(slice(int(f[0]), int(f[-1]) + 1) if len(f) else slice(0, 0) for f in found)
        return cls(labels.shape, box, zlib.compress(labels[box].tobytes(), level=1))

    def unpack(self) -> NDArray[np.uint8]:
        """The map as it was."""
        labels = np.zeros(self.shape, dtype=np.uint8)
        inside = labels[self.box]
        inside[...] = np.frombuffer(zlib.decompress(self.content), dtype=np.uint8).reshape(inside.shape)
        return labels


class CaseTable(Metric):
    """Overlap of each case and region; its value is the key metric.

    The key metric is the mean over regions of the mean Dice over the cases whose reference has the region. A region
    that was not annotated in a case (which then has `labeled`) is not judged there.

    Args:
        regions: name -> label values.
        ignore_label: voxels with this reference value are not judged.
    """

    def __init__(self, regions: Mapping[str, Sequence[int]], *, ignore_label: int | None = None) -> None:
        self.regions, self.ignore_label = dict(regions), ignore_label
        super().__init__()

    def reset(self) -> None:
        """Forget all cases."""
        self.overlaps: dict[str, dict[str, dict[str, float]]] = {}
        self.unit: Unit = "mm"
        self._judged: list[tuple[float, str, PackedLabels]] = []

    def iteration_completed(self, engine: Engine) -> None:
        """Judge the case that the engine has just finished."""
        batch = engine.state.batch
        judged = (batch["case_id"], engine.state.output["pred"], engine.state.output["label"], batch["grid"])
        self.update((*judged, batch.get("labeled", list(self.regions))))

    def update(self, output: tuple[str, Tensor, Tensor, Any] | tuple[str, Tensor, Tensor, Any, Sequence[str]]) -> None:
        """Add one case: id, prediction and label `(1, 1, X, Y, Z)`, grid, and the regions annotated if not all."""
        case_id, pred, label, grid = output[:4]
        labeled = output[4] if len(output) == 5 else list(self.regions)
        pred_voxels = torch.as_tensor(pred)[0, 0].cpu().numpy().astype(np.uint8)
        overlap = region_overlap(
            pred_voxels,
            torch.as_tensor(label)[0, 0].cpu().numpy(),
            {region: values for region, values in self.regions.items() if region in labeled},
            voxel_ml=1.0 if grid.unit == "px" else voxel_volume_ml(grid.scan_affine),
            ignore_label=self.ignore_label,
        )
        self.overlaps[case_id], self.unit = overlap, grid.unit
        dice = [numbers["dice"] for numbers in overlap.values() if not np.isnan(numbers["dice"])]
        self._judged.append((float(np.mean(dice)) if dice else 1.0, case_id, PackedLabels.pack(pred_voxels)))

    def examples(self) -> dict[str, tuple[float, str, NDArray[np.uint8]]]:
        """The worst, median and best case: mean Dice, case id and prediction; of two cases the median is the worst."""
        if not self._judged:
            return {}
        ranked = sorted(self._judged, key=itemgetter(0, 1))
        chosen = {"worst": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "best": ranked[-1]}
        return {which: (score, case_id, packed.unpack()) for which, (score, case_id, packed) in chosen.items()}

    def predictions(self) -> dict[str, PackedLabels]:
        """What was predicted, by case id."""
        return {case_id: packed for _, case_id, packed in self._judged}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row a case: `case_id`, then `<region>_dice`, `_iou`, `_pred_ml` and `_reference_ml`.

        Of 2D images the last two are `_pred_px` and `_reference_px`. All are None for a region that was not annotated.
        """
        columns = {name: name if self.unit == "mm" else name.replace("_ml", "_px") for name in OVERLAP}
        return [
            {"case_id": case_id}
            | {
                f"{region}_{column}": overlap.get(region, {}).get(name)
                for region in self.regions
                for name, column in columns.items()
            }
            for case_id, overlap in self.overlaps.items()
        ]

    def means(self) -> dict[str, float]:
        """Mean of each region's Dice and IoU over the cases whose reference has it, and how many these are (`_n`)."""
        overlaps = list(self.overlaps.values())
        means: dict[str, float] = {}
        for region in self.regions:
            means |= {f"{region}_{name}": mean_over_cases(overlaps, region, name) for name in ("dice", "iou")}
            means[f"{region}_n"] = float(count_cases(overlaps, region))
        return means

    def compute(self) -> float:
        """Mean over the regions of their mean Dice; regions that no case has do not count.

        Of several processes each has judged its share; from here on all know all cases.
        """
        found = distributed.gathered((self.overlaps, self._judged))
        cases = [list(overlaps.items()) for overlaps, _ in found]
        self.overlaps = dict(case for dealt in zip_longest(*cases) for case in dealt if case is not None)
        packed = {judged[1]: judged for _, each in found for judged in each}
        self._judged = [packed[case_id] for case_id in self.overlaps]
        dice = [self.means()[f"{region}_dice"] for region in self.regions]
        present = [value for value in dice if not np.isnan(value)]
        return float(np.mean(present)) if present else 0.0


class TrackCases:
    """Handler of an evaluator: logs and tracks the means, writes the case table and, if asked, pictures.

    Args:
        experiment: the run to write into.
        table: the evaluator's key metric.
        split: which cases these are, e.g. `"validation"`; prefixes every name.
        samples: draw the worst, median and best of these cases, and the curves so far; none for no pictures.
        channels: the channels of the samples.
        intensity: the recipe's; a CT window is used for the pictures too.
        masks: what the values of mask files mean, where labels are such.
    """

    def __init__(
        self,
        experiment: Experiment,
        table: CaseTable,
        *,
        split: str,
        samples: Sequence[Sample] = (),
        channels: Sequence[str] = (),
        intensity: Intensity | None = None,
        masks: MaskCode | None = None,
    ) -> None:
        self.masks = masks
        self.window = (intensity.low_hu, intensity.high_hu) if isinstance(intensity, Window) else None
        self.experiment, self.table, self.split = experiment, table, split
        self.samples = {sample["case_id"]: sample for sample in samples}
        self.channels = tuple(channels)

    def attach(self, engine: Engine) -> None:
        """Called by MONAI's evaluator."""
        if distributed.is_first():
            engine.add_event_handler(Events.COMPLETED, self._track)

    def _track(self, engine: SupervisedEvaluator) -> None:
        means = self.table.means()
        key = engine.state.metrics[engine.state.key_metric_name]
        self.experiment.log_metrics(
            {f"{self.split}_{name}": value for name, value in {**means, KEY_METRIC: key}.items()},
            step=engine.state.epoch,
        )
        self.experiment.log_cases(self.table.rows, f"{self.split}_cases.csv")
        dice = ", ".join(
            f"{region} {means[f'{region}_dice']:.3f} (n={means[f'{region}_n']:.0f})" for region in self.table.regions
        )
        logger.info("%s, %d cases: Dice %s", self.split, len(self.table.rows), dice)
        if self.samples:
            self._draw()
        self.experiment.run.flush()

    def _draw(self) -> None:
        folder = self.experiment.folder / "pictures"
        folder.mkdir(exist_ok=True)
        for which, (score, case_id, pred) in self.table.examples().items():
            sample = self.samples[case_id]
            scans = read_channels(sample["image"], self.channels)
            label = read_label(sample["label"], self.masks).voxels.astype(np.uint8)
            path = folder / f"{self.split}_{which}.png"
            title = f"{which} of {len(self.table.rows)} {self.split} cases: {case_id}, mean Dice {score:.2f}"
            self._draw_case(scans, label, pred, path, title)
            self.experiment.run.log_file(path, "pictures")
        if curves := training_curves(self.experiment.run.history()):
            curves_picture(curves, folder / "curves.png")
            self.experiment.run.log_file(folder / "curves.png", "pictures")

    def _draw_case(
        self, scans: Sequence[Scan], label: NDArray[np.uint8], pred: NDArray[np.uint8], path: Path, title: str
    ) -> None:
        notice = self.experiment.notice
        if scans[0].unit == "px":
            pixels = np.concatenate([scan.voxels for scan in scans], axis=-1)
            image_picture(pixels, label[..., 0], pred[..., 0], path, title=title, notice=notice)
            return
        scan = scans[0]
        overlay_picture(scan.voxels, label, pred, scan.affine, path, title=title, window=self.window, notice=notice)


def training_curves(history: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Sequence[tuple[int, float]]]:
    """What of a run's figures is worth a curve, as `panel/name`: losses, Dice and learning rate over epochs.

    >>> training_curves({"train_loss": [(1, 0.7), (2, 0.5)], "held_out_liver_dice": [(2, 0.9)]})
    {'loss/train_loss': [(1, 0.7), (2, 0.5)]}
    """
    panels = {name: next((panel for panel in PANELS if panel in name), None) for name in history}  # the first that fits
    return {
        f"{panel}/{name}": history[name]
        for panel in PANELS
        for name in history
        if panels[name] == panel and len(history[name]) > 1
    }


def evaluate(
    experiment: Experiment,
    evaluator: SupervisedEvaluator,
    network: nn.Module,
    model: str | None,
    *,
    table: CaseTable | None = None,
    samples: Sequence[Sample] = (),
) -> None:
    """Judge a trained model on the held-out cases of a data set, and write the card that `medseg evaluate` writes.

    Args:
        experiment: the run, opened and closed here.
        evaluator: its network is `network`.
        network: gets the model's weights.
        model: bundle folder, run folder, zip or MLflow run id.
        table: the evaluator's key metric, whose cases the card is of; no card without.
        samples: these cases.

    Raises:
        ConfigError: without a model, or if it was trained with another data half than this recipe's.
    """
    if model is None:
        raise ConfigError("Evaluation needs a trained model: add `--model runs/NAME` (a run folder or bundle).")
    bundle = open_bundle(model, runs_dir=experiment.output_dir)
    merged = recipe.merged_recipe()
    trained, asked = ({"activation": "softmax"} | data_half(r) for r in (bundle.recipe, merged))
    different = sorted(id for id in trained.keys() | asked.keys() if trained.get(id) != asked.get(id))
    if different:
        raise ConfigError(
            f"The model was trained with another {', '.join(different)} than this recipe says; "
            "evaluate it with its own: `--config_file` configs/recipe.json of its bundle."
        )
    network.load_state_dict(bundle.network().state_dict())
    experiment.model_synthetic = bundle.synthetic
    with experiment.running():
        evaluator.run()
        if table is not None and experiment.records:
            split = judged_split(experiment.cases)
            write_card(experiment, table.predictions(), samples, bundle, recipe=merged, split=split)
        experiment.summarize()
