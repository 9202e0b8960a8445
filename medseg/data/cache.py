"""Prepared cases kept in memory or on disk: the steps before the first random one run once a case.

On disk a case is mapped, not read: the random steps touch the pages they need (of `medseg.transforms.patches` those
under the patches), and none stays mapped between two accesses, so that memory does not grow with the number of cases.

Where they are kept is chosen from what they need and what is free, and said in one line. A file on disk is named by the
content of the case's files and by every setting of the preparation, so that neither can be stale; it appears whole.
"""

import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms import Compose, RandomizableTrait, Transform
from torch import Tensor
from torch.utils.data import Dataset

from medseg.data.cache_files import describe_folder, packed, preparation_key, unpacked
from medseg.data.contents import fingerprint
from medseg.data.layouts import Sample
from medseg.errors import ConfigError, DataError
from medseg.memory import available_mb
from medseg.reading import read_grid
from medseg.writing import aside

logger = logging.getLogger(__name__)

Place = Literal["memory", "disk", "none"]
MEMORY_SHARE, DISK_SHARE = 0.6, 0.9  # of what is free: the training itself needs memory too
GB = 2**30


class CachedCases(Dataset[Any]):
    """Samples with the deterministic part of `transform` done once, and the random part at every access.

    Args:
        data: samples.
        transform: steps; what comes before the first random one is kept.
        cache: where: `"memory"`, `"disk"`, `"none"` (every access does everything), or `"auto"`, the first of these in
            which the cases fit.
        cache_dir: folder of the files.
        name: what these cases are, for the messages.
        loader_workers: processes of the data loader; where such processes do not share memory (spawned ones), each
            would hold a copy, which counts.
        num_workers: cases prepared at the same time.

    Raises:
        ConfigError: if the cases do not fit where the recipe wants them.
        DataError: if a case cannot be prepared.
    """

    def __init__(
        self,
        data: Sequence[Sample],
        transform: Compose,
        *,
        cache: Place | Literal["auto"] = "auto",
        cache_dir: str | Path = "runs/cache",
        name: str = "training",
        loader_workers: int = 0,
        num_workers: int = 2,
    ) -> None:
        if cache not in ("auto", "memory", "disk", "none"):
            raise ConfigError(f"cache is {cache!r}; use 'auto', 'memory', 'disk' or 'none'")
        self.data, self.transform = list(data), transform
        self.first_random = first_random(transform)
        self.files: list[Path] = []
        self.kept: list[dict[str, Any]] = []
        if cache == "none" or not self.data:
            return
        first = self._prepared(self.data[0])
        needed = round(size_of(first) * relative_size(self.data))
        copies = 1 + (loader_workers if multiprocessing.get_start_method() == "spawn" else 0)
        place = choose_place(
            cache,
            needed,
            needed * copies,
            Path(cache_dir),
            name=name,
            count=len(self.data),
            present=lambda: sum(file.stat().st_size for file in self._places(cache_dir) if file.is_file()),
        )
        with ThreadPoolExecutor(num_workers) as pool:
            try:
                if place == "memory":
                    self.kept = [first, *pool.map(self._prepared, self.data[1:])]
                elif place == "disk":
                    self.files = self._places(cache_dir)
                    describe_folder(self.files[0].parent, name)  # first: `medseg cache` clears half-made ones too
                    if not self._mapped(0):
                        self._write(0, first)
                    del first  # one case less in memory while the others are prepared
                    list(pool.map(self._store, own_order(len(self.data))))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        """The sample after all steps."""
        if self.kept:
            sample = dict(self.kept[index])
        elif self.files:
            sample = self._stored(index)
        else:
            sample = self._prepared(self.data[index])
        return self.transform(sample, start=self.first_random)

    def _prepared(self, sample: Sample) -> dict[str, Any]:
        return self.transform(dict(sample), end=self.first_random, threading=True)

    def _places(self, cache_dir: str | Path) -> list[Path]:
        """The file of each sample; every file that a sample names is hashed once."""
        if not self.files:
            folder = Path(cache_dir) / preparation_key(self.transform.transforms[: self.first_random])
            names = [f"{str(fingerprint([sample])['sha256'])[:32]}.pt" for sample in self.data]
            return [folder / name for name in names]
        return self.files

    def _stored(self, index: int) -> dict[str, Any]:
        """The prepared sample from its file; made first where there is none that can be read."""
        return self._mapped(index) or self._made(index)

    def _store(self, index: int) -> None:
        """Make the file of a sample, unless it is there; nothing is kept, or all cases would be in memory at once."""
        if not self._mapped(index):
            self._made(index)

    def _mapped(self, index: int) -> dict[str, Any] | None:
        """The prepared sample in its file, mapped into memory; None if there is none that can be read."""
        path = self.files[index]
        if path.is_file():
            try:
                return unpacked(torch.load(path, weights_only=True, mmap=True))
            except Exception as error:  # torch names no set of errors for a broken file
                logger.warning("a cached case cannot be read (%s) and is prepared again", type(error).__name__)
        return None

    def _made(self, index: int) -> dict[str, Any]:
        """The prepared sample, and its file."""
        prepared = self._prepared(self.data[index])
        self._write(index, prepared)
        return prepared

    def _write(self, index: int, prepared: Mapping[str, Any]) -> None:
        """Write a prepared sample to its file, which appears whole."""
        with aside(self.files[index]) as temporary:
            torch.save(packed(prepared), temporary)


def choose_place(
    cache: Place | Literal["auto"],
    needed: int,
    in_memory: int,
    cache_dir: Path,
    *,
    name: str,
    count: int,
    present: Callable[[], int],
) -> Place:
    """Where the cases go; says so in one line.

    Args:
        cache: what the recipe wants.
        needed: bytes of all cases.
        in_memory: bytes they take in memory, all copies counted.
        cache_dir: folder of the files.
        name: what these cases are.
        count: how many.
        present: how many bytes of them lie on disk already; asked only where that decides.

    Raises:
        ConfigError: if they do not fit where the recipe wants them.
    """
    memory, disk = available_mb() * 2**20, shutil.disk_usage(existing(cache_dir)).free
    fits = {"memory": in_memory <= MEMORY_SHARE * memory}
    there = present() if cache == "disk" or (cache == "auto" and not fits["memory"]) else 0
    fits["disk"] = needed - there <= DISK_SHARE * disk
    already = f" ({there / GB:.2f} of them there already)" if there else ""
    figures = {
        "memory": f"{in_memory / GB:.2f} GB in memory, {memory / GB:.1f} GB free",
        "disk": f"{needed / GB:.2f} GB on disk in {cache_dir.name}/{already}, {disk / GB:.1f} GB free",
    }
    if cache in fits and not fits[cache]:
        raise ConfigError(
            f"the {count} {name} cases do not fit: they need {figures[cache]}; "
            'set `cache` to "auto", or use a coarser `spacing_mm`'
        )
    place: Place = "memory" if fits["memory"] else "disk" if fits["disk"] else "none"
    if cache != "auto":
        place = cache
    if place == "none":
        logger.info("%d %s cases are prepared anew each time: %s; %s", count, name, *figures.values())
    else:
        logger.info("%d %s cases are kept: needs %s", count, name, figures[place])
    return place


def own_order(count: int) -> list[int]:
    """Order in which this process makes files: of several, as `torchrun` starts them, each begins elsewhere.

    What another has made meanwhile is not made again, so that together they need little longer than one by itself.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    first = count * rank // processes
    return [*range(first, count), *range(first)]


def first_random(transform: Compose) -> int:
    """Index of the first step that may give another result each time."""
    index = transform.get_index_of_first(lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform))
    return len(transform) if index is None else int(index)


def relative_size(samples: Sequence[Sample]) -> float:
    """Size of all cases relative to the first one: by volume in mm3, or by files where one has no such grid."""
    try:
        sizes = [_volume(sample) for sample in samples]
    except DataError:
        sizes = [sum(Path(path).stat().st_size for path in _images(sample)) for sample in samples]
    return sum(sizes) / max(sizes[0], 1e-6)


def _volume(sample: Sample) -> float:
    shape, affine = read_grid(_images(sample)[0])
    return float(np.prod(shape[:3]) * abs(np.linalg.det(affine[:3, :3])))


def _images(sample: Sample) -> list[str]:
    return [sample["image"]] if isinstance(sample["image"], str) else list(sample["image"])


def size_of(content: Any) -> int:
    """Bytes of all arrays within a prepared sample."""
    if isinstance(content, Tensor | np.ndarray):
        return int(content.nbytes)
    if isinstance(content, Mapping):
        return sum(size_of(value) for value in content.values())
    return sum(size_of(value) for value in content) if isinstance(content, list | tuple) else 0


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.resolve()
    return path if path.exists() else existing(path.parent)
