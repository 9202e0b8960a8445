"""Whole images through a network that sees patches: overlapping windows, blended; slice by slice for 2D networks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from medseg.errors import ConfigError
from medseg.inference.mirroring import mirrored_logits
from medseg.preprocessing import neighbor_slices

Blend = Literal["gaussian", "constant"]
Precision = Literal["float32", "bfloat16", "float16"]
Window = tuple[slice, ...]  # one a spatial axis

DTYPES: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIGMA = 0.125  # of the Gaussian, in window lengths
SLICES_AT_ONCE = 32
LOWEST_WEIGHT = 1e-3  # a voxel that only window corners see must not be divided by nearly nothing


class SlidingWindow:
    """Logits of a whole image from overlapping windows of `patch_size`.

    Windows and weights are those of MONAI's `sliding_window_inference`; an image smaller than the patch is padded with
    the lowest value of each channel, and the result cropped. Run it under `torch.inference_mode()`, with the network in
    evaluation mode.

    Windows run along one axis after the other two, so only a slab of sums one patch thick is in memory: what no further
    window reaches is finished and handed on. Weights are summed for one layer of windows and not for the image.

    Args:
        patch_size: voxels of a window along each axis.
        overlap: share of a window that the next one sees again, in `[0, 1)`.
        blend: weigh a window by a Gaussian around its center, or all its voxels equally.
        batch_size: windows a forward pass.
        precision: of the network; "bfloat16" and "float16" run it under autocast, the blending stays float32.
        mirror_axes: spatial axes, 0 the first, over whose mirrorings the logits of each window are averaged.

    Raises:
        ConfigError: if a setting is out of range.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        *,
        overlap: float = 0.5,
        blend: Blend = "gaussian",
        batch_size: int = 1,
        precision: Precision = "float32",
        mirror_axes: Sequence[int] = (),
    ) -> None:
        if not 0 <= overlap < 1:
            raise ConfigError(f"SlidingWindow: overlap is {overlap}; use a share from 0 to less than 1, such as 0.5")
        if min(patch_size) < 1 or batch_size < 1:
            raise ConfigError(
                f"SlidingWindow: patch_size is {list(patch_size)}, batch_size {batch_size}; use 1 or more"
            )
        if blend not in ("gaussian", "constant"):
            raise ConfigError(f"SlidingWindow: blend is {blend!r}; use 'gaussian' or 'constant'")
        if precision not in DTYPES:
            raise ConfigError(f"SlidingWindow: precision is {precision!r}; use 'float32', 'bfloat16' or 'float16'")
        if len(set(mirror_axes)) < len(mirror_axes) or not set(mirror_axes) <= set(range(len(patch_size))):
            raise ConfigError(
                f"SlidingWindow: mirror_axes is {list(mirror_axes)}; name each axis once, from 0 to "
                f"{len(patch_size) - 1}"
            )
        self.patch_size = tuple(patch_size)
        self.overlap, self.blend = overlap, blend
        self.batch_size, self.precision = batch_size, precision
        self.mirror_axes = tuple(mirror_axes)
        self.weights = window_weights(patch_size, blend)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits `(B, K, *spatial)`, float32, on the device of `inputs`.

        Args:
            inputs: images `(B, C, *spatial)`.
            network: windows `(N, C, *patch_size)` -> logits `(N, K, *patch_size)`.
            args: handed on to the network.
            kwargs: handed on to the network.

        Raises:
            ValueError: if `inputs` has not as many axes as the patch, or the network does not answer with logits on the
                window's grid.
        """
        whole: Tensor | None = None
        for side, slab in self.slabs(inputs, partial(_handed_on, network, args, kwargs)):
            if whole is None:
                whole = slab.new_empty(slab.shape[:2] + inputs.shape[2:])
            whole[:, :, side] = slab
        return whole  # type: ignore[return-value]

    @property
    def window(self) -> "SlidingWindow":
        """Itself: what settings of windows are asked of."""
        return self

    def changed(
        self,
        *,
        batch_size: int | None = None,
        precision: Precision | None = None,
        mirror_axes: Sequence[int] | None = None,
    ) -> "SlidingWindow":
        """The same with other settings; None leaves one as it is.

        Raises:
            ConfigError: if a setting is out of range.
        """
        return SlidingWindow(
            self.patch_size,
            overlap=self.overlap,
            blend=self.blend,
            batch_size=self.batch_size if batch_size is None else batch_size,
            precision=precision or self.precision,
            mirror_axes=self.mirror_axes if mirror_axes is None else mirror_axes,
        )

    def slab_axis(self, shape: Sequence[int]) -> int:
        """The axis, first or last, along which slabs of an image of `shape` `(*spatial)` take less memory."""
        sizes = [max(size, patch) for size, patch in zip(shape, self.patch_size, strict=True)]
        last = len(sizes) - 1
        thinner = self.patch_size[last] * sizes[0] < 0.8 * self.patch_size[0] * sizes[last]  # the first is faster
        return last if thinner else 0

    def slabs(
        self,
        image: Tensor,
        network: Callable[..., Tensor],
        *,
        axis: int = 0,
        across: int | None = None,
        within: slice | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Finished logits, slab after slab, on the device of `image`: there windows are blended.

        Args:
            image: `(B, C, *spatial)`.
            network: windows `(N, C, *patch_size)` -> logits `(N, K, *patch_size)`.
            axis: spatial axis along which the slabs follow each other.
            across: another one, of which only a strip is wanted; the logits are the same.
            within: the strip's voxels along `across`.
            device: where the network is, if not where the image is.

        Yields:
            Voxels along `axis`, and their logits `(B, K, *slab)` float32. They are valid until the next slab is asked
            for, which reuses their memory.

        Raises:
            ValueError: as when called.
        """
        image = image.as_subclass(Tensor)  # MONAI's MetaTensor would follow every window's slice
        if image.ndim != len(self.patch_size) + 2 or not image.numel():
            raise ValueError(
                f"image is {list(image.shape)} for a patch of {list(self.patch_size)}; expected (B, C, *spatial)"
            )
        padded, inside = pad_to(image, self.patch_size)
        kept = list(inside)
        if across is not None and within is not None:
            kept[across] = slice(kept[across].start + within.start, kept[across].start + within.stop)
        wanted, kept[axis] = kept[axis], slice(0, padded.shape[2 + axis])
        layers = window_layers(padded.shape[2:], self.patch_size, self.overlap, kept, axis)
        weights = self.weights.to(image.device)
        layer_begins = [layer[0][axis].start for layer in layers]
        summed = layer_weights(layers[0], weights, kept, axis)

        places = [(window, item) for layer in layers for window in layer for item in range(len(padded))]
        batches = [places[first : first + self.batch_size] for first in range(0, len(places), self.batch_size)]
        begins = [batch[0][0][axis].start for batch in batches]
        length = max(batch[-1][0][axis].stop - begin for batch, begin in zip(batches, begins, strict=True))
        sums: Tensor | None = None
        for batch, begin, end in zip(batches, begins, [*begins[1:], padded.shape[2 + axis]], strict=True):
            crops = torch.stack([padded[item][(slice(None), *window)] for window, item in batch])
            logits = self.window_logits(crops.to(device or image.device), network).to(image.device)
            if sums is None:
                sizes = [side.stop - side.start for side in kept]
                sizes[axis] = length
                sums = image.new_zeros((len(padded), logits.shape[1], *sizes), dtype=torch.float32)
            kept[axis] = slice(begin, begin + length)
            for (window, item), window_logits in zip(batch, logits, strict=True):
                target, source = overlapping(window, kept)
                sums[item][(slice(None), *target)].addcmul_(window_logits[(slice(None), *source)], weights[source])
            if end > begin:  # no further window reaches what lies before `end`
                finished = sums.narrow(2 + axis, 0, end - begin)
                finished /= summed_weights(summed, layer_begins, axis, begin, end)
                first, last = max(begin, wanted.start), min(end, wanted.stop)
                if last > first:
                    side = slice(first - wanted.start, last - wanted.start)
                    yield side, finished.narrow(2 + axis, first - begin, last - first)
                _move_back(sums, 2 + axis, end - begin)

    def window_logits(self, crops: Tensor, network: Callable[..., Tensor]) -> Tensor:
        """Logits of windows `(N, C, *patch_size)` in the precision and with the mirroring set.

        Raises:
            ValueError: if the network answers with something else.
        """
        dtype = DTYPES[self.precision]
        with torch.autocast(crops.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits = mirrored_logits(crops, network, self.mirror_axes)
        if not isinstance(logits, Tensor):
            raise ValueError(f"the network answered with a {type(logits).__name__}, not logits; put it in eval() mode")
        if logits.shape[2:] != crops.shape[2:]:
            raise ValueError(
                f"the network answered {list(logits.shape)} to a window {list(crops.shape)}; the grids must be equal"
            )
        return logits


class SliceBySlice:
    """A 2D network over the last axis of a volume.

    Args:
        inferer: 2D inferer; the slices are its batch.
        neighbors: slices on each side that the network sees as further channels, as in training; beyond the ends of the
            volume the end slice repeats.

    Raises:
        ConfigError: if `neighbors` is negative.
    """

    def __init__(self, inferer: SlidingWindow, *, neighbors: int = 0) -> None:
        if neighbors < 0:
            raise ConfigError(f"SliceBySlice: neighbors is {neighbors}; use 0 or more slices on each side")
        self.inferer, self.neighbors = inferer, neighbors

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Volume `(B, C, X, Y, Z)` -> logits `(B, K, X, Y, Z)`, float32.

        Raises:
            ValueError: if `inputs` is not a batch of volumes.
        """
        whole: Tensor | None = None
        for side, slab in self.slabs(inputs, partial(_handed_on, network, args, kwargs)):
            if whole is None:
                whole = slab.new_empty(slab.shape[:2] + inputs.shape[2:])
            whole[..., side] = slab
        return whole  # type: ignore[return-value]

    @property
    def window(self) -> SlidingWindow:
        """The 2D inferer: what settings of windows are asked of."""
        return self.inferer

    def changed(
        self,
        *,
        batch_size: int | None = None,
        precision: Precision | None = None,
        mirror_axes: Sequence[int] | None = None,
    ) -> "SliceBySlice":
        """The same with other settings of the 2D inferer; see `SlidingWindow.changed`."""
        inferer = self.inferer.changed(batch_size=batch_size, precision=precision, mirror_axes=mirror_axes)
        return SliceBySlice(inferer, neighbors=self.neighbors)

    def slab_axis(self, shape: Sequence[int]) -> int:
        """The last axis, over which the slices lie."""
        return len(shape) - 1

    def slabs(
        self,
        image: Tensor,
        network: Callable[..., Tensor],
        *,
        axis: int = 2,
        across: int | None = None,
        within: slice | None = None,
        device: torch.device | str | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Finished logits of some slices after the other; as of `SlidingWindow.slabs`, always along the last axis.

        Raises:
            ValueError: if `image` is not a batch of volumes, or slabs along another axis are asked for.
        """
        if image.ndim != 5:
            raise ValueError(f"image is {list(image.shape)}; slice by slice needs a volume (B, C, X, Y, Z)")
        if axis != 2 or across is not None:
            raise ValueError(f"slices lie along axis 2, not {axis if across is None else across}; ask for whole ones")
        volume = image.as_subclass(Tensor)
        for first in range(0, volume.shape[-1], SLICES_AT_ONCE):
            side = slice(first, min(first + SLICES_AT_ONCE, volume.shape[-1]))
            slab = neighbor_slices(volume, self.neighbors, side).movedim(-1, 1)
            logits = self.inferer(slab.flatten(0, 1).to(device or image.device), network).to(image.device)
            yield side, logits.view(*slab.shape[:2], *logits.shape[1:]).movedim(1, -1)


def starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis of `size` voxels; the last window ends with the axis."""
    step = max(int(patch * (1 - overlap)), 1)
    last = max(size - patch, 0)
    return [*range(0, last, step), last]


def window_layers(
    shape: Sequence[int], patch_size: Sequence[int], overlap: float, kept: Sequence[slice], axis: int
) -> list[list[Window]]:
    """Every window of an image of `shape` that reaches `kept`, in layers along `axis`."""
    axes = [
        [
            slice(start, start + patch)
            for start in starts(size, patch, overlap)
            if start < side.stop and start + patch > side.start
        ]
        for size, patch, side in zip(shape, patch_size, kept, strict=True)
    ]
    return [list(product(*axes[:axis], [along], *axes[axis + 1 :])) for along in axes[axis]]


def window_weights(patch_size: Sequence[int], blend: Blend) -> Tensor:
    """Weight of each voxel of a window, `(*patch_size)` float32."""
    weights = torch.ones(tuple(patch_size))
    if blend == "gaussian":
        for axis, patch in enumerate(patch_size):
            distance = torch.arange(patch, dtype=torch.float32) - (patch - 1) / 2
            profile = torch.exp(distance**2 / (-2 * (SIGMA * patch) ** 2))
            weights *= profile.view([-1 if other == axis else 1 for other in range(len(patch_size))])
    return weights.clamp_min(LOWEST_WEIGHT)


def layer_weights(layer: Sequence[Window], weights: Tensor, kept: Sequence[slice], axis: int) -> Tensor:
    """Sum of the weights of one layer of windows, as thick along `axis` as a window."""
    along = layer[0][axis]
    box = [*kept[:axis], along, *kept[axis + 1 :]]
    total = weights.new_zeros([side.stop - side.start for side in box])
    for window in layer:
        target, source = overlapping(window, box)
        total[target] += weights[source]
    return total


def summed_weights(layer: Tensor, begins: Sequence[int], axis: int, begin: int, end: int) -> Tensor:
    """Weight that voxels `begin` to `end` along `axis` get from all layers of windows.

    Args:
        layer: as of `layer_weights`.
        begins: first voxel of each layer along `axis`.
        axis: along which the layers lie.
        begin: first voxel.
        end: the one after the last.
    """
    thickness = layer.shape[axis]
    total = layer.new_zeros([*layer.shape[:axis], end - begin, *layer.shape[axis + 1 :]])
    for start in begins:
        first, last = max(begin, start), min(end, start + thickness)
        if last > first:
            total.narrow(axis, first - begin, last - first).add_(layer.narrow(axis, first - start, last - first))
    return total


def overlapping(window: Sequence[slice], box: Sequence[slice]) -> tuple[Window, Window]:
    """Where a window and a box overlap: counted from the box's first voxel, and from the window's."""
    both = [slice(max(own.start, side.start), min(own.stop, side.stop)) for own, side in zip(window, box, strict=True)]
    return tuple(_moved(both, box)), tuple(_moved(both, window))


def _moved(sides: Sequence[slice], origin: Sequence[slice]) -> list[slice]:
    return [slice(s.start - o.start, s.stop - o.start) for s, o in zip(sides, origin, strict=True)]


def _move_back(sums: Tensor, dim: int, voxels: int) -> None:
    """Drop the first voxels along `dim`, move the others to the front, and put zeros behind them."""
    rest = sums.shape[dim] - voxels
    moved = sums.narrow(dim, voxels, rest)
    sums.narrow(dim, 0, rest).copy_(moved if rest <= voxels else moved.clone())
    sums.narrow(dim, rest, voxels).zero_()


def _handed_on(
    network: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any], windows: Tensor
) -> Tensor:
    return network(windows, *args, **kwargs)


def pad_to(image: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, Window]:
    """Image at least as large as the patch, and where the given one lies in it.

    Args:
        image: `(B, C, *spatial)`; padded on both sides with the lowest value of each sample's channel.
        patch_size: voxels along each axis.
    """
    spatial = image.shape[2:]
    missing = [max(patch - size, 0) for size, patch in zip(spatial, patch_size, strict=True)]
    inside = tuple(slice(short // 2, short // 2 + size) for size, short in zip(spatial, missing, strict=True))
    if not any(missing):
        return image, inside
    lowest = image.amin(dim=tuple(range(2, image.ndim)), keepdim=True)
    padded = lowest.repeat(1, 1, *(size + short for size, short in zip(spatial, missing, strict=True)))
    padded[(slice(None), slice(None), *inside)] = image
    return padded, inside
