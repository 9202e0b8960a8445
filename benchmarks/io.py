"""Reading a CT and writing its label map, all checks on, beside SimpleITK, nibabel and MONAI.

    python benchmarks/io.py [--scan FILE.nii.gz] [--rounds 5] [--json FILE] [--markdown FILE]

Rounds are interleaved and what counts is the ratio within a round. CPU seconds (all threads) stand beside wall seconds:
where others use the machine, wall seconds of a tool that hands work to a second thread are the less steady. Without
`--scan` a CT of 512x512x200 voxels is drawn: a body with noise that compresses as a real one (45 MB). What was read is
compared voxel by voxel, what was written is read back by nibabel. medseg's figures have its checks on: header against
file, checksum to the trailer, SHA-256 of the file, NaN, HU; after writing a sync to disk and reading back.
Memory is the peak of a process of its own above what the imports take.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from isal import igzip

from medseg.memory import peak_memory_mb
from medseg.reading import read_scan
from medseg.reading.plausibility import check_hu
from medseg.writing import write_nifti

PIECE_BYTES = 1 << 18
AFFINE = np.diag([-0.8, -0.8, 2.0, 1.0])
Reader = Callable[[Path], np.ndarray]
Writer = Callable[[np.ndarray, Path], None]


def read_medseg(path: Path) -> np.ndarray:
    """Voxels, every check on."""
    return check_hu(read_scan(path), path.name).voxels


def read_simpleitk(path: Path) -> np.ndarray:
    """Voxels as SimpleITK gives them, turned to the file's order of axes."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T


def read_nibabel(path: Path) -> np.ndarray:
    """Voxels in the file's type."""
    return np.asanyarray(nib.load(path).dataobj)


def read_monai(path: Path) -> np.ndarray:
    """Voxels as float32, MONAI's default."""
    from monai.transforms import LoadImage

    return LoadImage(image_only=True)(path).numpy()


def read_floor(path: Path) -> np.ndarray:
    """The floor: inflating alone into memory at hand, nothing looked at."""
    size = nib.load(path).dataobj.offset + int(np.prod(nib.load(path).shape)) * 2
    content = np.empty(size, dtype=np.uint8)
    with igzip.open(path) as file:
        for start in range(0, size, PIECE_BYTES):
            file.readinto(content[start : start + PIECE_BYTES])
    return content


def write_simpleitk(label: np.ndarray, path: Path) -> None:
    """Compressed, not checked."""
    sitk.WriteImage(sitk.GetImageFromArray(label.T), str(path), useCompression=True)


def write_nibabel(label: np.ndarray, path: Path) -> None:
    """Not checked."""
    nib.save(nib.Nifti1Image(label, AFFINE), path)


def write_medseg(label: np.ndarray, path: Path) -> None:
    """Written aside, synced, read back, renamed."""
    write_nifti(label, AFFINE, path)


def write_monai(label: np.ndarray, path: Path) -> None:
    """By MONAI's SaveImage, which goes through ITK or nibabel."""
    from monai.data import MetaTensor
    from monai.transforms import SaveImage

    image = MetaTensor(label[None], affine=AFFINE)
    SaveImage(output_dtype=np.uint8, resample=False, print_log=False)(image, filename=path.name.split(".")[0])


READERS: dict[str, Reader] = {
    "medseg": read_medseg,
    "SimpleITK": read_simpleitk,
    "nibabel": read_nibabel,
    "MONAI": read_monai,
    "isal alone": read_floor,
}
WRITERS: dict[str, Writer] = {
    "medseg": write_medseg,
    "SimpleITK": write_simpleitk,
    "nibabel": write_nibabel,
    "MONAI": write_monai,
}


def main() -> None:
    """Print the figures as a table and as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scan", type=Path, help="a CT, .nii.gz with int16 voxels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("--peak", nargs=2, metavar=("READER", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_mb(arguments.peak[0], Path(arguments.peak[1])))
        return
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        scan = arguments.scan.absolute() if arguments.scan else drawn_ct(Path(folder) / "ct.nii.gz")
        figures = measured(scan, Path(folder), arguments.rounds)
    table = as_table(figures)
    print(table)
    print(json.dumps(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(table + "\n", encoding="utf-8")


def drawn_ct(path: Path) -> Path:
    """A body of soft tissue in air, with noise."""
    rng = np.random.default_rng(0)
    x, y = np.ogrid[-1:1:512j, -1:1:512j]
    inside = (x**2 + (1.4 * y) ** 2 < 0.7)[..., None]
    hu = np.where(inside, 50, -1000) + rng.normal(0, np.where(inside, 18, 3), (512, 512, 200))
    image = nib.Nifti1Image(np.asfortranarray(hu.astype(np.int16)), AFFINE)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6))
    return path


def drawn_label(shape: tuple[int, ...]) -> np.ndarray:
    """A liver with a tumor, and so on: two ellipsoids."""
    x, y, z = (np.linspace(-1, 1, length).reshape([-1 if axis == at else 1 for at in range(3)]) for axis, length in
               enumerate(shape))  # fmt: skip
    label = np.zeros(shape, dtype=np.uint8, order="F")
    label[x**2 + y**2 + z**2 < 0.35] = 1
    label[(x - 0.1) ** 2 + y**2 + z**2 < 0.02] = 2
    return label


def measured(scan: Path, folder: Path, rounds: int) -> dict[str, object]:
    """Seconds of each tool in each round, peak memory, and where that was."""
    expected = read_nibabel(scan)
    for name, reader in READERS.items():
        if name != "isal alone" and not np.array_equal(reader(scan), expected):
            raise SystemExit(f"{name} reads other voxels")
    label = drawn_label(expected.shape)
    target = folder / "label.nii.gz"
    for name, writer in WRITERS.items():
        writer(label, target)
        written = target if name != "MONAI" else next(folder.rglob("label_*.nii.gz"), target)
        if not np.array_equal(read_nibabel(written), label):
            raise SystemExit(f"{name} writes other voxels")
    read: dict[str, list[tuple[float, float]]] = {name: [] for name in READERS}
    write: dict[str, list[tuple[float, float]]] = {name: [] for name in WRITERS}
    for _ in range(rounds):
        for name, reader in READERS.items():
            read[name].append(seconds(reader, scan))
        for name, writer in WRITERS.items():
            write[name].append(seconds(writer, label, target))
    return {
        "scan": {"voxels": list(expected.shape), "compressed_mb": round(scan.stat().st_size / 1e6, 1)},
        "processor": processor(),
        "rounds": rounds,
        "read_wall_cpu_s": read,
        "write_wall_cpu_s": write,
        "peak_mb": {name: peak_apart(name, scan) for name in READERS},
    }


def seconds(call: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_apart(name: str, scan: Path) -> int:
    """Peak memory in MB of a process that reads once, above its imports."""
    command = [sys.executable, str(Path(__file__).absolute()), "--peak", name, str(scan)]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).absolute().parents[1])}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=here).stdout.split()[-1])


def peak_mb(name: str, scan: Path) -> int:
    """Peak memory of one reading above what this process had."""
    if name == "MONAI":
        import monai.transforms  # noqa: F401 (counted as an import)
    before = peak_memory_mb()
    READERS[name](scan)
    return peak_memory_mb() - before


def as_table(figures: dict[str, object]) -> str:
    """Medians, and medians of the ratios to medseg within each round, as Markdown."""
    lines = [
        "| | read, wall / CPU s | ratio | peak, MB | write, wall / CPU s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    read, write, peaks = figures["read_wall_cpu_s"], figures["write_wall_cpu_s"], figures["peak_mb"]
    for name in READERS:
        written = cells(write, name) if name in write else " | "
        lines.append(f"| {name} | {cells(read, name)} | {peaks[name]} | {written} |")
    return "\n".join(lines)


def cells(times: dict[str, list[tuple[float, float]]], name: str) -> str:
    """Seconds, and how many times those of medseg."""
    medians = [statistics.median(column) for column in zip(*times[name], strict=True)]
    ratios = [
        statistics.median(own[which] / base[which] for own, base in zip(times[name], times["medseg"], strict=True))
        for which in (0, 1)
    ]
    return " / ".join(f"{value:.3f}" for value in medians) + " | " + " / ".join(f"{value:.2f}" for value in ratios)


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
