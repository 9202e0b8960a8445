"""What the gray values or colors of a mask file mean."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ConfigError, DataError

Code = int | tuple[int, int, int]
SHOWN = 5  # unknown values in a message


class MaskCode:
    """Masks of a folder of images to label values; a value that no label has is refused, never rounded.

    Args:
        labels: name -> label value.
        values: name -> gray value (0 ... 255 as a viewer shows it, up to 65535 with 16 bits) or palette index.
            Background is 0 unless named. Without `values` and `colors`, masks hold the label values themselves.
        colors: name -> `[red, green, blue]` instead. Background is black unless named.
        threshold: gray value from which on a pixel counts as the higher of two values; for masks with smooth edges or
            with a number an object.
        ignore_label: label value of what nobody annotated; masks may have it under the name "ignore".

    Raises:
        ConfigError: if names, values or colors do not fit the labels or each other.
    """

    def __init__(
        self,
        labels: Mapping[str, int],
        *,
        values: Mapping[str, int] | None = None,
        colors: Mapping[str, Sequence[int]] | None = None,
        threshold: int | None = None,
        ignore_label: int | None = None,
    ) -> None:
        if values is not None and colors is not None:
            raise ConfigError("mask_values and mask_colors are both set; keep the one that the masks use")
        self.by_color = colors is not None
        given: dict[str, Code] = {}
        if colors is not None:
            given = {name: _color(name, color) for name, color in colors.items()}
        elif values is not None:
            given = {name: _value(name, value) for name, value in values.items()}
        else:
            given = {name: value for name, value in labels.items() if value != ignore_label}
        self.setting = "mask_colors" if self.by_color else "mask_values"
        meanings = dict(labels)
        if ignore_label is not None and ignore_label not in labels.values():
            meanings["ignore"] = ignore_label
        self.label_of = self._meanings(given, meanings, ignore_label)
        self.threshold = threshold
        if threshold is not None:
            self._check_threshold(threshold)

    def __call__(self, pixels: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
        """Label of a mask.

        Args:
            pixels: `(*spatial)` gray values, or `(*spatial, 3)` colors where the mask has such.
            name: of the file, for messages.

        Raises:
            DataError: if the mask has values or colors that no label has.
        """
        if self.by_color:
            return self._decoded(_packed(pixels if pixels.ndim == 4 else np.stack([pixels] * 3, axis=-1)), name)
        if pixels.ndim == 4:
            if (pixels != pixels[..., :1]).any():
                raise DataError(f"{name}: the mask is colored; say in `mask_colors` which color is which label")
            pixels = pixels[..., 0]
        if self.threshold is None:
            return self._decoded(pixels, name)
        above = pixels >= self.threshold  # type: ignore[operator]
        sides = {int(code) >= self.threshold: value for code, value in self.label_of.items() if isinstance(code, int)}
        return np.where(above, np.uint8(sides[True]), np.uint8(sides[False]))

    def _decoded(self, codes: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
        label = np.zeros(codes.shape, dtype=np.uint8)
        known = np.zeros(codes.shape, dtype=bool)
        for code, value in self.label_of.items():
            found = codes == (code if isinstance(code, int) else _packed(np.array(code)))
            label[found] = value
            known |= found
        if not known.all():
            raise DataError(self._unknown(codes[~known], codes.size, name))
        return label

    def _unknown(self, codes: NDArray[np.generic], size: int, name: str) -> str:
        found, counts = np.unique(codes, return_counts=True)
        common = [found[index].item() for index in np.argsort(-counts, kind="stable")[:SHOWN]]
        shown = [_unpacked(code) for code in common] if self.by_color else common
        more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
        what = "colors" if self.by_color else "values"
        smooth = "export it without smoothing" if self.by_color else "set `mask_threshold` (such as 128)"
        return (
            f"{name}: {codes.size} of {size} mask pixels have {what} that no label has ({shown}{more}); if these are "
            f"smooth edges, {smooth}, else name them in `{self.setting}`"
        )

    def _meanings(
        self, given: Mapping[str, Code], meanings: Mapping[str, int], ignore_label: int | None
    ) -> dict[Code, int]:
        """Code -> label value."""
        strange = [name for name in given if name not in meanings]
        if strange:
            raise ConfigError(f"{self.setting}: {strange[0]!r} is no label; known are {', '.join(meanings)}")
        codes: dict[Code, int] = {}
        background = next((name for name, value in meanings.items() if value == 0), None)
        named = dict(given)
        if background is not None:
            named.setdefault(background, (0, 0, 0) if self.by_color else 0)
        missing = [name for name, value in meanings.items() if name not in named and value != ignore_label]
        if missing:
            raise ConfigError(f"{self.setting}: nothing for the label {missing[0]!r}; add it")
        for name, code in named.items():
            if code in codes:
                raise ConfigError(f"{self.setting}: {name!r} and another label are both {code}; give each its own")
            codes[code] = meanings[name]
        return codes

    def _check_threshold(self, threshold: int) -> None:
        if self.by_color:
            raise ConfigError("mask_threshold: needs gray masks; use mask_values instead of mask_colors")
        above = [code for code in self.label_of if isinstance(code, int) and code >= threshold]
        if len(self.label_of) != 2 or len(above) != 1:
            raise ConfigError(
                f"mask_threshold: {threshold} must lie between the mask values of two labels, got "
                f"{list(self.label_of)}; with more labels, export masks without smooth edges"
            )


def _value(name: str, value: int) -> int:
    if type(value) is not int or not 0 <= value < 2**16:
        raise ConfigError(f"mask_values: {name!r} is {value!r}; give a whole number from 0 to 65535")
    return value


def _color(name: str, color: Sequence[int]) -> tuple[int, int, int]:
    if len(color) != 3 or not all(type(part) is int and 0 <= part < 256 for part in color):
        raise ConfigError(f"mask_colors: {name!r} is {color!r}; give [red, green, blue], each from 0 to 255")
    return color[0], color[1], color[2]


def _packed(colors: NDArray[np.generic]) -> NDArray[np.int32]:
    """Colors `(..., 3)` as one number each."""
    red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _unpacked(code: int) -> list[int]:
    return [code >> 16, code >> 8 & 255, code & 255]
