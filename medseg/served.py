"""A bundle as MLflow loads it: `mlflow.pyfunc.load_model("models:/liver@best")`, nothing unpickled, nothing run."""

from typing import TYPE_CHECKING, Any

from medseg.bundle import open_bundle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _load_pyfunc(path: str) -> "ServedBundle":  # the name that MLflow calls
    return ServedBundle(path)


class ServedBundle:
    """A bundle's network and inferer, on the CPU; of an ensemble the mean logits of its folds.

    Args:
        path: the bundle's folder.
    """

    def __init__(self, path: str) -> None:
        bundle = open_bundle(path)
        self.networks, self.inferer = (
            [bundle.network(fold) for fold in bundle.folds or (None,)],
            bundle.build("inferer"),
        )
        self.activation, self.flat = bundle.activation, bundle.unit == "px"

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> "NDArray[np.float32]":
        """Images `(B, C, *spatial)` on the network's grid, preprocessed -> probabilities `(B, out, *spatial)`.

        A 2D model of scans takes whole volumes, one of images flat ones `(B, C, X, Y)`.

        Args:
            model_input: float32 array, or a mapping with one as `image`.
            params: none are known.
        """
        import torch

        images = torch.as_tensor(model_input["image"] if isinstance(model_input, dict) else model_input)
        images = images[..., None] if self.flat else images  # the inferer takes an image as a volume of one slice
        with torch.inference_mode():
            folds = [torch.cat([self.inferer(image[None], network) for image in images]) for network in self.networks]
        stacked = torch.stack(folds).float().mean(dim=0)
        probabilities = stacked.sigmoid() if self.activation == "sigmoid" else stacked.softmax(dim=1)
        return (probabilities[..., 0] if self.flat else probabilities).numpy()
