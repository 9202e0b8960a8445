"""Bundles: what every training writes and every prediction reads.

A folder, or a zip of one, with `configs/recipe.json` (merged), `configs/metadata.json` and `models/model.pt` (weights
alone); the folds of an ensemble have `models/fold_0.pt` and so on instead. Only the data half of the recipe is
resolved, so opening a bundle runs nothing of it.
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata as installed
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from medseg import __version__, data_half
from medseg.errors import ConfigError
from medseg.model_files import RECIPE, find_model, has_member, read_member
from medseg.notices import notice
from medseg.writing import aside

if TYPE_CHECKING:
    from torch import Tensor, nn

METADATA, WEIGHTS = "configs/metadata.json", "models/model.pt"
FOLD_WEIGHTS = "models/fold_{}.pt"  # of an ensemble
FORMAT, NEEDS_MEDSEG = 1, "0.1.0"  # of the bundles written here, and the first medseg that reads them
SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        root: its folder or zip.
        recipe: the merged recipe as written; of its ids only the data half is ever resolved.
        metadata: MONAI's `metadata.json` of this task.
    """

    root: Path
    recipe: dict[str, Any]
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the model, for reports."""
        return str(self.metadata.get("name") or self.root.stem)

    @property
    def version(self) -> str:
        """Version of the model, for reports."""
        return str(self.metadata.get("version", "unknown"))

    @cached_property
    def labels(self) -> dict[str, int]:
        """Label value of each name."""
        return self._literal("labels")

    @cached_property
    def regions(self) -> dict[str, list[int]]:
        """Label values of each region that metrics and reports speak of."""
        return self._literal("regions")

    @cached_property
    def lesion_region(self) -> str | None:
        """Region whose connected pieces are lesions, if there is one."""
        return self._literal("lesion_region") if "lesion_region" in self.recipe else None

    @cached_property
    def channels(self) -> list[str]:
        """Names of the channels of a case, in order."""
        return self._literal("channels")

    @property
    def unit(self) -> Literal["mm", "px"]:
        """Unit of lengths: "px" for a model of 2D images, which have no mm."""
        half = {"scan_to_grid": self._literal("scan_to_grid")} if "scan_to_grid" in self.recipe else {}
        return "px" if data_half.in_pixels(half) else "mm"

    @cached_property
    def activation(self) -> str:
        """What makes probabilities of the network's logits: `"softmax"` over classes, or `"sigmoid"`, one a region."""
        return self._literal("activation") if "activation" in self.recipe else "softmax"

    @property
    def modality(self) -> Literal["CT", ""]:
        """The modality, "CT", of a model whose intensities are an HU window; empty where it is not known."""
        intensity = self._literal("intensity") if "intensity" in self.recipe else None
        target = intensity.get("_target_") if isinstance(intensity, Mapping) else None
        return "CT" if target == "medseg.preprocessing.Window" else ""

    @property
    def flags(self) -> Any:
        """Thresholds of what a person should look at first, as `medseg.report.flags.FlagRules` reads them."""
        return self._literal("flags") if "flags" in self.recipe else None

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities; 1 where none has been fitted.

        Raises:
            ConfigError: if it is no number above 0.
        """
        told = self.metadata.get("temperature", 1.0)
        if not isinstance(told, int | float) or not 0 < told < float("inf"):
            raise ConfigError(f"{METADATA}: temperature is {told!r}; give a number above 0, or leave it out")
        return float(told)

    @property
    def precision(self) -> str:
        """Floating-point type the network runs in: one that a stored check has found as good, else the inferer's."""
        check = self.metadata.get("precision_check")
        if isinstance(check, Mapping) and check.get("passed"):
            return str(check.get("precision"))
        return _find_setting(self._literal("inferer"), "precision") or "float32"

    @property
    def synthetic(self) -> bool:
        """Whether the model has learned from synthetic data alone."""
        return bool(self.metadata.get("synthetic", False))

    @property
    def notice(self) -> str:
        """What must stand beside every result of this model."""
        return notice(synthetic=self.synthetic)

    def build(self, id: str) -> Any:
        """The object that `id` of the data half describes; see `medseg.data_half.build`.

        Raises:
            ConfigError: if it cannot be built; names the id.
        """
        try:
            return data_half.build(self.recipe, id)
        except ConfigError as error:
            raise ConfigError(f"model '{self.name}', {error}") from error

    @property
    def folds(self) -> tuple[int, ...]:
        """The folds of an ensemble, whose logits are averaged; empty for a single model."""
        return _folds(self.metadata)

    def network(self, fold: int | None = None) -> "nn.Module":
        """The network with its weights, on the CPU, in evaluation mode.

        Args:
            fold: which one's weights, for an ensemble.

        Raises:
            ConfigError: if the weights cannot be read or belong to another network, or there is no such fold.
        """
        network: nn.Module = self.build("network_def")
        weights = self._weights_file(fold)
        try:
            different = network.load_state_dict(self.state_dict(fold), strict=False)
        except (RuntimeError, TypeError, AttributeError) as error:  # another shape, no mapping, no tensors
            raise ConfigError(f"{weights} of model '{self.name}' is not of its network_def: {error}") from error
        for keys, what in ((different.missing_keys, "lacks"), (different.unexpected_keys, "has unexpected")):
            if keys:
                raise ConfigError(
                    f"{weights} of model '{self.name}' {what} {len(keys)} weights ({', '.join(keys[:3])}, ...); "
                    "use the network_def it was trained with"
                )
        return network.eval()

    def state_dict(self, fold: int | None = None) -> dict[str, "Tensor"]:
        """The weights alone, on the CPU; of an ensemble those of a fold.

        Raises:
            ConfigError: if they cannot be read, or there is no such fold.
        """
        import torch

        try:
            content = io.BytesIO(read_member(self.root, self._weights_file(fold)))
            return torch.load(content, map_location="cpu", weights_only=True)
        except ConfigError:
            raise
        except Exception as error:  # torch names no set of errors for a broken file
            raise ConfigError(
                f"{self._weights_file(fold)} of model '{self.name}' cannot be read as plain weights; "
                f"copy the bundle again ({type(error).__name__})"
            ) from error

    def weights_sha256(self, folds: Sequence[int] = ()) -> str:
        """Hex digest of the weights as they lie in the file; of several folds the digest of their digests, in order.

        Args:
            folds: of an ensemble; empty for all.

        Raises:
            ConfigError: if there is no such fold.
        """
        files = [self._weights_file(fold) for fold in tuple(folds) or self.folds or (None,)]
        digests = [hashlib.sha256(read_member(self.root, file)).hexdigest() for file in files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _weights_file(self, fold: int | None) -> str:
        if fold is None and not self.folds:
            return WEIGHTS
        if fold is None:
            raise ConfigError(
                f"model '{self.name}' is an ensemble of {len(self.folds)} folds, and one model is asked for; reduce it "
                "first: medseg bundle reduce MODEL OUT"
            )
        if fold not in self.folds:
            has = f"has the folds {', '.join(map(str, self.folds))}" if self.folds else "is no ensemble of folds"
            raise ConfigError(f"fold {fold}: model '{self.name}' {has}; choose another")
        return FOLD_WEIGHTS.format(fold)

    def _literal(self, id: str) -> Any:
        return data_half.literal(self.recipe, id)


def open_bundle(model: str | Path, *, runs_dir: str | Path = "runs") -> Bundle:
    """Open the bundle that `model` names, without running anything of it.

    Args:
        model: a bundle's folder, the folder of a run (which has `bundle/`), a zip of a bundle, or an MLflow run id, of
            which the first 8 characters will do.
        runs_dir: where the runs are, for a run id.

    Raises:
        ConfigError: if there is no such bundle, or it is not whole, or of a newer format, or its data half cannot be
            read.
    """
    root = find_model(model, Path(runs_dir))
    try:
        metadata = json.loads(read_member(root, METADATA))
        if isinstance(metadata, dict):
            _check_format(model, metadata)
        recipe = json.loads(read_member(root, RECIPE))
        if not isinstance(recipe, dict) or not isinstance(metadata, dict):
            raise ValueError("each JSON file must hold an object")
        for weights in [FOLD_WEIGHTS.format(fold) for fold in _folds(metadata)] or [WEIGHTS]:
            if not has_member(root, weights):
                raise FileNotFoundError(f"no {weights}")
    except ConfigError:
        raise
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"model '{model}' is not a whole bundle ({RECIPE}, {METADATA}, {WEIGHTS}): {error}; copy it again"
        ) from error
    wrong = data_half.problems(recipe)
    if wrong:
        raise ConfigError(f"model '{model}' has a recipe that cannot be used: {'; '.join(wrong)}")
    return Bundle(root, recipe, metadata)


def _check_format(model: str | Path, metadata: Mapping[str, Any]) -> None:
    """Refuse a bundle that a later medseg has written in another form; what it needs stands in it."""
    written = metadata.get("format_version", 1)  # the first bundles did not say
    if not isinstance(written, int) or written > FORMAT:
        raise ConfigError(
            f"model '{model}' has bundle format {written}, and medseg {__version__} reads formats up to {FORMAT}; "
            f"install medseg {metadata.get('needs_medseg', '(a newer one)')} or later"
        )


def with_format(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata that say which form of bundle they are in, and which medseg it needs."""
    return {**metadata, "format_version": FORMAT, "needs_medseg": NEEDS_MEDSEG}


def _folds(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(fold) for fold in metadata.get("ensemble", {}).get("folds", ()))


def write_bundle(
    folder: str | Path,
    *,
    recipe: Mapping[str, Any],
    metadata: Mapping[str, Any],
    state_dict: Mapping[str, "Tensor"],
) -> Path:
    """Write a bundle: a new one appears whole, in one there already each file is replaced, the weights last.

    Args:
        folder: where the bundle is to be.
        recipe: merged recipe with macros expanded; absolute paths in it are left out, they mean nothing elsewhere.
        metadata: as of `task_metadata`.
        state_dict: the network's weights, on any device.

    Returns:
        `folder`.
    """
    import torch

    target = Path(folder)
    made_in = target if target.exists() else target.with_name(f".{uuid4().hex[:8]}-{target.name}")
    try:
        for name, content in ((RECIPE, without_absolute_paths(recipe)), (METADATA, with_format(metadata))):
            with aside(made_in / name) as path:
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        with aside(made_in / WEIGHTS) as path:
            torch.save({key: value.detach().cpu().clone() for key, value in state_dict.items()}, path)
        if made_in != target:
            made_in.replace(target)
    finally:
        if made_in != target:
            shutil.rmtree(made_in, ignore_errors=True)
    return target


def task_metadata(
    base: Mapping[str, Any],
    recipe: Mapping[str, Any],
    *,
    name: str,
    synthetic: bool,
    eval_metrics: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """MONAI's metadata of one trained task.

    Args:
        base: the project's own `configs/metadata.json`; authors, license, packages and versions come from there.
        recipe: merged recipe; channels, labels and sizes come from its data half.
        name: of the model.
        synthetic: whether all training cases were synthetic.
        eval_metrics: scores reached in validation, by name.

    Returns:
        Content of `metadata.json`, valid against MONAI's schema.
    """
    half = data_half.data_half(recipe)
    classes = ", ".join(f"{value}: {label}" for label, value in half["labels"].items())
    return {
        **{key: base[key] for key in SHARED if key in base},
        "schema": SCHEMA,
        "version": base.get("version", __version__),
        **{key: _installed_version(package) for key, package in VERSIONS.items()},
        "name": name,
        "task": f"Segmentation of {', '.join(half['regions'])} from {', '.join(half['channels'])} images",
        "description": str(recipe.get("_about_", base.get("description", ""))),
        "intended_use": f"Research and teaching; {notice(synthetic=synthetic)}.",
        "data_type": "synthetic images" if synthetic else "medical images",
        "synthetic": synthetic,
        "data_source": "synthetic phantom" if synthetic else "the user's own",
        "image_classes": ", ".join(half["channels"]),
        "label_classes": classes,
        "pred_classes": classes,
        "eval_metrics": dict(eval_metrics or {}),
        "network_data_format": _data_format(half),
    }


SHARED = ("required_packages_version", "supported_apps", "authors", "copyright")  # with every task of this project
VERSIONS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


def _installed_version(package: str) -> str:
    try:
        return installed.version(package).partition("+")[0]  # without the build, as in 2.13.0+cpu
    except installed.PackageNotFoundError:
        return "none"


def _data_format(half: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the network and what comes out, in the terms of MONAI's bundle specification."""
    is_ct = _find_setting(half.get("intensity"), "low_hu") is not None
    tensor = {"type": "image", "spatial_shape": half["patch_size"], "dtype": "float32", "is_patch_data": True}
    image = {
        "format": "hounsfield" if is_ct else "magnitude",
        "num_channels": half["in_channels"],
        "value_range": [0, 1] if is_ct else [],
        "channel_def": {str(index): channel for index, channel in enumerate(_channel_names(half))},
    }
    pred = {
        "format": "segmentation",
        "num_channels": half["out_channels"],
        "value_range": [],  # logits
        "channel_def": {str(index): name for index, name in _outputs(half) if index < half["out_channels"]},
    }
    return {"inputs": {"image": {**tensor, **image}}, "outputs": {"pred": {**tensor, **pred}}}


def _channel_names(half: Mapping[str, Any]) -> list[str]:
    """What each input channel of the network is: a channel, or one of its slices, such as "ct -1"."""
    around = half.get("neighbors", 0)
    steps = range(-around, around + 1)
    return [f"{channel} {step:+d}" if step else channel for channel in half["channels"] for step in steps]


def _outputs(half: Mapping[str, Any]) -> Iterable[tuple[int, str]]:
    """Index and name of each output channel: the classes, or with a sigmoid the regions."""
    if half.get("activation") == "sigmoid":
        return enumerate(half["regions"])
    return ((value, label) for label, value in half["labels"].items())


def without_absolute_paths(content: Any) -> Any:
    """JSON data with None for each string that is an absolute path, of any system: they may name a person."""
    if isinstance(content, Mapping):
        return {key: without_absolute_paths(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_absolute_paths(value) for value in content]
    if isinstance(content, Path):
        content = str(content)
    is_path = isinstance(content, str) and any(kind(content).is_absolute() for kind in (PurePosixPath, PureWindowsPath))
    return None if is_path else content


def _find_setting(content: Any, key: str) -> Any:
    """First value of `key` at any depth of JSON data, None if there is none."""
    if isinstance(content, Mapping) and key in content:
        return content[key]
    inner: Sequence[Any] = (
        list(content.values()) if isinstance(content, Mapping) else content if isinstance(content, list) else []
    )
    return next((found for value in inner if (found := _find_setting(value, key)) is not None), None)
