"""Training patches cut from prepared cases: compact to keep, and read without touching the rest of the volume.

A case is kept as float16 image, uint8 label and the places of each class. A patch is a view into it until its own
voxels are copied, so that a case may lie on disk, mapped into memory, and only the pages under the patch are read.
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from monai.transforms.traits import MultiSampleTrait
from numpy.typing import NDArray
from torch import Tensor

from medseg.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

ImagePrecision = Literal["float16", "float32"]
PLACES_KEY = "class_places"
ROUNDING_SHARE = 1e-3  # of the image's standard deviation: what rounding may change (root mean square)


def compact_image(image: Tensor) -> Tensor:
    """The image in float16, or as it is where float16 would lose what matters.

    Of intensities in [0, 1] float16 changes at most 1/4096, 0.07 HU of a window of 300 HU; of z-scores below 4 at most
    1/1024 of a standard deviation. Values above 65504, or far from zero for how little they vary, do not fit.
    """
    halved = image.half()
    deviation = float(torch.std(image, correction=0))
    error = float((halved.float() - image).square_().mean().sqrt())
    return halved if error <= ROUNDING_SHARE * deviation else image  # an overflow is an infinite error


def class_places(label: NDArray[np.integer], classes: int, *, most: int) -> list[NDArray[np.signedinteger]]:
    """Where each class lies.

    Args:
        label: integer map `(*spatial)`.
        classes: how many; values from 0.
        most: places kept of a class, evenly spread over all of its voxels.

    Returns:
        Places of each class in the flattened label, ascending; int32 where that is enough.
    """
    kind: type[np.signedinteger] = np.int32 if label.size <= np.iinfo(np.int32).max else np.int64
    found = []
    for value in range(classes):
        places = np.flatnonzero(label == value)
        if len(places) > most:
            places = places[np.round(np.linspace(0, len(places) - 1, most)).astype(int)]
        found.append(places.astype(kind))
    return found


def draw_starts(
    places: Sequence[NDArray[np.signedinteger]],
    shape: Sequence[int],
    size: Sequence[int],
    *,
    class_ratios: Sequence[float],
    count: int,
    random: np.random.RandomState,
) -> list[tuple[int, ...]]:
    """Corners of random patches, each around a voxel of a class drawn by `class_ratios`, and within the volume.

    The draws are those of MONAI's `RandCropByLabelClasses`, in its order: the classes of all patches, then a place for
    each.

    Args:
        places: of each class, as of `class_places`.
        shape: of the volume.
        size: of a patch; at most `shape`.
        class_ratios: how often a patch has each class in its center; a class without places is never drawn.
        count: patches.
        random: state to draw from.

    Raises:
        DataError: if no class that the ratios ask for has a place.
    """
    wanted = np.array([ratio if len(each) else 0 for ratio, each in zip(class_ratios, places, strict=True)], float)
    if wanted.sum() == 0:
        raise DataError(
            f"a case has no voxel of a class that class_ratios {list(class_ratios)} asks for; give a class that every "
            "case has a ratio above 0, or remove the case from the data set"
        )
    starts = []
    for drawn in random.choice(len(wanted), size=count, p=wanted / wanted.sum()):
        place = places[drawn][random.randint(len(places[drawn]))]
        center = np.unravel_index(int(place), tuple(shape))
        corner = [min(max(int(c) - n // 2, 0), length - n) for c, n, length in zip(center, size, shape, strict=True)]
        starts.append(tuple(corner))
    return starts


class CompactCased(Transform):
    """Prepared sample -> what patches are cut from: `image`, `label` and the places of each class, as plain arrays.

    Args:
        class_ratios: of the training; one a class.
        classes_key: the label map that says of which class a voxel is.
        most_places: kept of each class: enough to draw from evenly, few enough to keep for every case.
        image_precision: `"float32"` for images exactly as they were prepared, or `"float16"`, half of the room.

    Raises:
        ConfigError: if there is no such precision.
    """

    def __init__(
        self,
        class_ratios: Sequence[float],
        *,
        classes_key: str = "label",
        most_places: int = 20_000,
        image_precision: ImagePrecision = "float32",
    ) -> None:
        if image_precision not in ("float16", "float32"):
            raise ConfigError(f'image_precision is {image_precision!r}; use "float16" or "float32"')
        self.classes, self.classes_key, self.most_places = len(class_ratios), classes_key, most_places
        self.image_precision = image_precision

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample with `(C, *spatial)` tensors -> sample of these three alone."""
        image, label = (torch.as_tensor(data[key]).as_subclass(Tensor) for key in ("image", "label"))
        if self.image_precision == "float16":
            image = compact_image(image)
            if image.dtype != torch.float16:
                logger.warning("float16 cannot hold the intensities of a case, which is kept in float32")
        places = class_places(torch.as_tensor(data[self.classes_key])[0].numpy(), self.classes, most=self.most_places)
        return {"image": image, "label": label.to(torch.uint8), PLACES_KEY: [torch.from_numpy(each) for each in places]}


class CropByClassd(Randomizable, Transform, MultiSampleTrait):
    """Random patches of a sample of `CompactCased`, see `draw_starts`; the volume itself is not copied.

    Args:
        size: of a patch, one length an axis.
        class_ratios: how often a patch has each class in its center, background first.
        count: patches of a sample.
    """

    def __init__(self, size: Sequence[int], class_ratios: Sequence[float], *, count: int = 1) -> None:
        self.size, self.class_ratios, self.count = tuple(size), tuple(class_ratios), count
        self.starts: list[tuple[int, ...]] = []

    def randomize(self, data: Mapping[Hashable, Any]) -> None:
        """Draw the corners of the patches."""
        places = [each.numpy() for each in data[PLACES_KEY]]
        shape = data["label"].shape[1:]
        self.starts = draw_starts(
            places, shape, self.size, class_ratios=self.class_ratios, count=self.count, random=self.R
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Tensor]]:
        """Sample -> patches: image `(C, *size)` in float32, label `(1, *size)` in uint8, each a tensor of its own."""
        self.randomize(data)
        boxes = [
            (slice(None), *(slice(first, first + n) for first, n in zip(start, self.size, strict=True)))
            for start in self.starts
        ]
        return [
            {"image": _copied(data["image"][box], torch.float32), "label": _copied(data["label"][box])} for box in boxes
        ]


def _copied(view: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The view's voxels as a contiguous tensor of their own."""
    return torch.empty(view.shape, dtype=dtype or view.dtype).copy_(view)
