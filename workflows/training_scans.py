"""What scans a training learns from, for its bundle: a prediction flags a scan that is unlike all of them."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle
from medseg.data import Sample
from medseg.errors import DataError
from medseg.inference.training_range import training_range
from medseg.reading import read_channels, read_header

logger = logging.getLogger(__name__)

VOXELS_OF = 24  # cases whose voxels are read, seconds each for a whole CT; of the others the headers suffice


def range_of(samples: Sequence[Sample], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`{"training_range": ...}` for a bundle's metadata; empty for images in pixels and without cases.

    A file that cannot be read any more costs the range, not the training.

    Args:
        samples: what is learned from.
        recipe: merged.
    """
    bundle = Bundle(Path(), dict(recipe), {})
    if bundle.unit == "px" or not samples:
        return {}
    step = -(-len(samples) // VOXELS_OF)
    images = [_images(sample) for sample in samples]
    try:
        found = training_range(
            (read_channels(image, bundle.channels) for image in images[::step]),
            channels=bundle.channels,
            modality=bundle.modality,
            headers=(read_header(image[0]) for index, image in enumerate(images) if index % step),
        )
    except (DataError, OSError) as error:
        logger.warning("the bundle does not tell the range of its training scans: %s", error)
        return {}
    return {"training_range": found}


def _images(sample: Sample) -> list[str]:
    return [sample["image"]] if isinstance(sample["image"], str) else list(sample["image"])
