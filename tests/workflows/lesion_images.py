"""Made-up color images with lesions that no threshold finds: texture tells them apart, light and color do not."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter


def lesion_image(rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image `(rows, columns, 3)` and mask `(rows, columns)`, 255 in the lesions.

    Skin is smooth noise of one grain; a lesion is a wobbly ellipse, slightly darker and of finer grain. Light falls off
    by several times a lesion's contrast across the image, and dark hairs and smooth dark spots are no lesions.
    """
    rows, columns = np.mgrid[: size[0], : size[1]].astype(float)
    mask = np.zeros(size, bool)
    for _ in range(rng.integers(1, 4)):
        center, radius = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(9, 22)
        angle = np.arctan2(rows - center[0], columns - center[1])
        wobble = 1 + 0.18 * np.sin(rng.integers(2, 5) * angle + rng.uniform(0, 6.3))
        stretch = rng.uniform(0.7, 1.4)
        distance = np.hypot((rows - center[0]) * stretch, (columns - center[1]) / stretch)
        mask |= distance < radius * wobble
    coarse, fine = (noise / noise.std() for noise in (gaussian_filter(rng.normal(size=size), s) for s in (3.5, 0.8)))
    texture = np.where(mask, 15 * fine - 12, 15 * coarse)
    slope = rng.normal(size=2)
    slope *= rng.uniform(40, 70) / np.abs(slope).sum()
    light = slope[0] * (rows / size[0] - 0.5) * 2 + slope[1] * (columns / size[1] - 0.5) * 2
    for _ in range(3):  # smooth dark spots
        center = rng.uniform(0, 1, 2) * size
        light -= 40 * np.exp(-((rows - center[0]) ** 2 + (columns - center[1]) ** 2) / (2 * rng.uniform(6, 12) ** 2))
    skin = np.array([190, 140, 120]) + rng.normal(0, 12, 3)
    image = skin + (texture + light)[..., None] * np.array([1.0, 0.9, 0.8]) + rng.normal(0, 4, (*size, 3))
    for _ in range(4):  # hairs
        start, direction = rng.uniform(0, 1, 2) * size, rng.uniform(0, np.pi)
        off = np.abs((rows - start[0]) * np.cos(direction) - (columns - start[1]) * np.sin(direction))
        image[off < 0.8] *= 0.4
    return image.clip(0, 255).astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8)


def write_lesion_images(folder: Path, count: int, *, seed: int = 0) -> Path:
    """A data set of `count` pairs in `images/` (PNG, JPEG and TIFF by turns) and `masks/` (PNG); sizes differ."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        size = (int(rng.integers(110, 150)), int(rng.integers(130, 170)))
        image, mask = lesion_image(rng, size)
        suffix = ("png", "jpg", "tif")[number % 3]
        options = {"quality": 92} if suffix == "jpg" else {}
        Image.fromarray(image).save(folder / "images" / f"skin_{number:04d}.{suffix}", **options)
        Image.fromarray(mask).save(folder / "masks" / f"skin_{number:04d}.png")
    return folder


def best_threshold_dice(folder: Path) -> float:
    """Mean Dice of the best threshold that each image could have, on any channel, darker or lighter: an upper bound."""
    scores = []
    for path in sorted((folder / "images").iterdir()):
        image = np.asarray(Image.open(path)).astype(int)
        mask = np.asarray(Image.open(folder / "masks" / f"{path.stem}.png")) > 0
        best = 0.0
        for channel in np.moveaxis(image, -1, 0):
            inside, whole = (np.bincount(values, minlength=256).cumsum() for values in (channel[mask], channel.ravel()))
            for hit, found in ((inside, whole), (inside[-1] - inside, whole[-1] - whole)):
                best = max(best, float((2 * hit / (found + mask.sum())).max()))
        scores.append(best)
    return float(np.mean(scores))
