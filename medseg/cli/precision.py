"""`medseg bundle precision`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli.bundles import bundle_app
from medseg.cli.common import FAILED
from medseg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from medseg.bundle import Bundle
    from medseg.inference.precision import CheckedCase

JUDGED = ("bfloat16", "float16")


@bundle_app.command("precision")
def check_precision(
    model: Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder or run; its metadata gets the check.")],
    scans: Annotated[Path, typer.Argument(metavar="SCANS", help="Scans like those the model is for.")],
    labels: Annotated[
        Path | None, typer.Option(help="Folder of experts' labels, named as the cases; without it masks are compared.")
    ] = None,
    precision: Annotated[str, typer.Option(help="bfloat16 or float16, judged beside float32.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Check whether a model may run in fewer bits, and keep the answer with it.

    It may if at least 99.9 % of each scan's voxels are equal to those in float32 and no region's Dice differs by more
    than 0.001; `medseg predict` then runs it so. Exit code 3: it may not.
    """
    if precision not in JUDGED:
        raise ConfigError(f"--precision: is {precision!r}; give {' or '.join(JUDGED)}")
    from medseg.bundle import open_bundle
    from medseg.doctor import choose_device
    from medseg.inference import Predictor
    from medseg.inference.precision import agreement, store, summary

    bundle, chosen = open_bundle(model), choose_device(device)
    if not bundle.root.is_dir():
        raise ConfigError(f"{model} is a zip, which is not changed; unpack it, and give the folder")
    predictor = Predictor.from_bundle(bundle, device=chosen, precision="float32")
    other = Predictor.from_bundle(bundle, device=chosen, precision=precision)  # type: ignore[arg-type] # checked
    found = agreement(predictor, other, _cases(bundle, scans, labels), regions=bundle.regions)
    passed = store(bundle, precision, found)
    typer.echo(f"{precision}: {summary(found)}")
    stays = f"too far apart: {bundle.name} stays as it is"
    typer.echo(f"{bundle.name} runs in {precision} from now on" if passed else stays)
    raise typer.Exit(0 if passed else FAILED)


def _cases(bundle: "Bundle", scans: Path, labels: Path | None) -> "Iterator[CheckedCase]":
    """Each case's channels, and its label where there is one."""
    from medseg.geometry import grid_difference
    from medseg.inference.cases import cases_in
    from medseg.reading import read_channels, read_label

    for case in cases_in(scans, channels=bundle.channels, unit=bundle.unit):
        read = read_channels(case.sources, bundle.channels)
        if labels is None:
            yield read, None
            continue
        name = Path(case.case_id)
        found = sorted((labels / name.parent).glob(f"{name.name}.*"))
        if len(found) != 1:
            raise DataError(f"{case.case_id}: {len(found)} labels of this name in --labels; give one each")
        label = read_label(found[0])
        different = grid_difference(label.voxels.shape, label.affine, read[0].voxels.shape, read[0].affine)
        if different:
            raise DataError(f"{case.case_id}: its label has another {different} than the scan; export both on one grid")
        yield read, label.voxels
