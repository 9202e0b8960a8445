"""A bundle as an MLflow model: `MLmodel` beside the bundle's own files, so that nothing is pickled or kept twice."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from medseg.data_half import in_pixels
from medseg.errors import ConfigError

LOADER = "medseg.served"  # MLflow imports it by this name when it loads the model
PACKAGES = ("medseg", "torch", "numpy")
MANY = -1


def model_card(bundle: Path, run_id: str, artifact_path: str) -> str:
    """Text of the file `MLmodel` for a bundle.

    Its signature: image `(B, C, *spatial)` on the network's grid -> probabilities `(B, out_channels, *spatial)`,
    float32. A 2D model of scans takes whole volumes, whose `C` does not count the neighboring slices.

    Args:
        bundle: the bundle's folder.
        run_id: MLflow's id of the run.
        artifact_path: where the run's artifacts hold the bundle.

    Raises:
        ConfigError: if the bundle's recipe does not say dimensions and channels.
    """
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    recipe = _recipe(bundle)
    grid = (MANY,) * (2 if in_pixels(recipe) else 3)
    channels = recipe["in_channels"] // (2 * int(recipe.get("neighbors") or 0) + 1)
    image = TensorSpec(np.dtype(np.float32), (MANY, channels, *grid), "image")
    probabilities = TensorSpec(np.dtype(np.float32), (MANY, recipe["out_channels"], *grid), "probabilities")
    signature = ModelSignature(inputs=Schema([image]), outputs=Schema([probabilities]))
    model = Model(artifact_path=artifact_path, run_id=run_id, signature=signature)
    # by hand: mlflow.pyfunc, which would do it, takes seconds to import and warns of its own type hints
    model.add_flavor("python_function", loader_module=LOADER, python_version=platform.python_version())
    return str(model.to_yaml())


def requirements() -> str:
    """Text of the `requirements.txt` that MLflow reads beside `MLmodel`."""
    return "".join(f"{name}=={metadata.version(name).partition('+')[0]}\n" for name in PACKAGES)


def register(client: Any, run_id: str, *, name: str, artifact_path: str, alias: str | None) -> None:
    """Make the run's model a version of the registered model `name`, and point `alias` at it; done twice, it is one.

    Raises:
        Exception: one of `store.failures()`.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    version = (
        versions[0]
        if versions
        else client.create_model_version(name, f"runs:/{run_id}/{artifact_path}", run_id, await_creation_for=0)
    )
    if alias:
        client.set_registered_model_alias(name, alias, version.version)


def _recipe(bundle: Path) -> dict[str, Any]:
    path = bundle / "configs" / "recipe.json"
    try:
        recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{bundle.name} is no bundle (configs/recipe.json cannot be read): give a whole one"
        ) from error
    for name in ("spatial_dims", "in_channels", "out_channels"):
        if not isinstance(recipe.get(name), int):
            raise ConfigError(f"{name} of bundle {bundle.name} is {recipe.get(name)!r}: it must be a number")
    return recipe
