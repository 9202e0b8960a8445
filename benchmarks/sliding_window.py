"""The sliding window over its bare forward passes: medseg beside MONAI and nnU-Net v2, same network and windows.

    python benchmarks/sliding_window.py [--full] [--rounds 3] [--nnunet PYTHON] [--json FILE]

What is told is the time of the whole, argmax on the working grid included, over the time spent inside the network in
the same run: `overhead` 1.01 is one hundredth more. Without `--full` an image of 96x96x96 and windows of 48, with it
256x256x128 and windows of 96; half overlap, Gaussian, batch 1, float32, no mirroring, one thread, the network's memory
layout left alone. Each way runs in its own process, rounds are interleaved. Logits of medseg must equal MONAI's within
1e-5, labels outside of ties within 1e-4; nnU-Net's Gaussian is another, of its labels it is only told how many differ.
`step` is the whole of each way over medseg's in CPU seconds; `layout` the same with medseg's probe of layouts on.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measuring import Figures, apart, finish, measured, medians

SIZES = {False: ((96, 96, 96), 48), True: ((256, 256, 128), 96)}
WAYS = ("medseg", "medseg, layout probed, memory kept", "MONAI", "nnU-Net")


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="larger image and windows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--nnunet", help="a Python that has nnunetv2")
    parser.add_argument("--json", type=Path, help="file for the figures; the table is written beside it")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape, patch = SIZES[arguments.full]
    if arguments.one:
        print(json.dumps(one(arguments.one[0], Path(arguments.one[1]), patch, arguments.classes)))
        return
    import torch

    from medseg.networks import UNet

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        network = UNet(3, 1, arguments.classes, widths=(16, 32, 64, 128, 256))
        torch.save(network.state_dict(), folder / "network.pt")
        np.save(folder / "image.npy", np.random.default_rng(0).random(shape, np.float32))
        found: dict[str, list[Figures]] = {}
        for _ in range(arguments.rounds):
            for way in WAYS:
                if way == "nnU-Net" and not arguments.nnunet:
                    continue
                python = arguments.nnunet if way == "nnU-Net" else sys.executable
                rest = ["--classes", arguments.classes, *(["--full"] if arguments.full else [])]
                found.setdefault(way, []).append(apart(python, Path(__file__), *rest, "--one", way, folder))
        rows = compared(found, folder)
    note = f"image {shape}, windows {patch}, {arguments.classes} classes, {arguments.rounds} rounds, medians"
    finish(rows, note, arguments.json)


def compared(found: dict[str, list[Figures]], folder: Path) -> list[Figures]:
    """A row a way; refuses logits that are not MONAI's."""
    logits = {way: np.load(folder / f"{way}.npy", mmap_mode="r") for way in found}
    theirs, own = logits["MONAI"], medians(found["medseg"])
    highest = np.sort(theirs, axis=0)
    clear = highest[-1] - highest[-2] > 1e-4
    rows = []
    for way, rounds in found.items():
        row = {"way": way, **medians(rounds)}
        row["step"] = row["cpu_s"] / own["cpu_s"]
        row["largest_difference"] = float(np.abs(logits[way] - theirs).max())
        row["labels_differ"] = int(np.count_nonzero((logits[way].argmax(0) != theirs.argmax(0)) & clear))
        if way.startswith("medseg") and (row["largest_difference"] > 1e-5 or row["labels_differ"]):
            raise SystemExit(f"{way}: logits differ from MONAI's by {row['largest_difference']:.2g}")
        rows.append(row)
    return rows


def one(way: str, folder: Path, patch: int, classes: int) -> Figures:
    """Figures of one way in this process; its logits go to a file, from a second pass."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1]))  # nnU-Net's Python has no medseg
    from medseg.networks import UNet

    torch.set_num_threads(1)
    network = UNet(3, 1, classes, widths=(16, 32, 64, 128, 256)).eval()
    network.load_state_dict(torch.load(folder / "network.pt", weights_only=True))
    image = torch.from_numpy(np.load(folder / "image.npy"))[None, None]
    inside = 0.0

    class Timed(torch.nn.Module):
        """The network, its time counted."""

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            nonlocal inside
            started = time.process_time()
            logits = network(windows)
            inside += time.process_time() - started
            return logits

    ways = {"MONAI": by_monai, "nnU-Net": by_nnunet}
    kept = "kept" in way
    label, logits = ways[way](Timed(), image, patch, classes) if way in ways else by_medseg(Timed(), image, patch, kept)
    with torch.inference_mode():
        Timed()(image[..., :patch, :patch, :patch])
        inside = 0.0
        _, figures = measured(label)
        figures |= {"network_cpu_s": inside, "overhead": figures["cpu_s"] / inside}
        if not (folder / f"{way}.npy").exists():
            np.save(folder / f"{way}.npy", logits())
    return figures


Work = tuple[Callable[[], object], Callable[[], np.ndarray]]  # the label, for the time; and the logits


def by_medseg(network, image, patch: int, kept: bool) -> Work:
    """Slabs, and the winner of each, as they are handed on."""
    import torch

    from medseg.back_to_grid import winning_class
    from medseg.inference.sliding_window import SlidingWindow
    from medseg.inference.tuning import Runner
    from medseg.memory import keep_freed_memory

    if kept:
        keep_freed_memory()
    window = SlidingWindow([patch] * 3, overlap=0.5)
    axis = window.slab_axis(image.shape[2:])

    def label() -> torch.Tensor:
        runner = Runner(network, layout="auto" if kept else "contiguous")
        found = torch.empty(image.shape[2:], dtype=torch.uint8)
        for side, slab in window.slabs(image, runner, axis=axis):
            found.narrow(axis, side.start, side.stop - side.start).copy_(winning_class(slab[0]))
        return found

    return label, lambda: window(image, network)[0].numpy()


def by_monai(network, image, patch: int, classes: int) -> Work:
    """`sliding_window_inference`, its output's argmax by `AsDiscrete`."""
    from monai.inferers import sliding_window_inference
    from monai.transforms import AsDiscrete

    def logits():
        return sliding_window_inference(image, [patch] * 3, 1, network, 0.5, "gaussian")

    return lambda: AsDiscrete(argmax=True)(logits()[0]), lambda: logits()[0].numpy()


def by_nnunet(network, image, patch: int, classes: int) -> Work:
    """`nnUNetPredictor.predict_sliding_window_return_logits` on the CPU, and its argmax."""
    from types import SimpleNamespace

    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=[patch] * 3)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=classes)
    predictor.allowed_mirroring_axes = None

    def logits() -> torch.Tensor:
        return predictor.predict_sliding_window_return_logits(image[0])

    return lambda: logits().argmax(0), lambda: logits().float().numpy()


if __name__ == "__main__":
    main()
