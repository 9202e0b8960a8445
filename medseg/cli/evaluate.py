"""`medseg evaluate`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli.common import FAILED, app, progress, say
from medseg.errors import ConfigError
from medseg.notices import notice

if TYPE_CHECKING:
    from medseg.bundle import Bundle
    from medseg.evaluation import Judgment

NAMED = re.compile(r"([\w-]+)=(.+)")
WAYS = ("staple", "majority")


@app.command()
def evaluate(
    pred: Annotated[Path, typer.Argument(metavar="PRED", help="Folder of masks, such as the OUT of medseg predict.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the card.")],
    ref: Annotated[
        list[str], typer.Option(metavar="[NAME=]DIR", help="Folder of reference masks; once more for each reader.")
    ],
    model: Annotated[str, typer.Option(help="The bundle, run or MLflow run id that made the masks.")] = "",
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe that says labels and regions, where there is no model.")
    ] = None,
    scans: Annotated[Path | None, typer.Option(help="Folder of the scans, for pictures.")] = None,
    probabilities: Annotated[
        Path | None, typer.Option(help="Folder of probabilities, such as those of predict, for calibration.")
    ] = None,
    cases: Annotated[Path | None, typer.Option(help="CSV: case_id, and patient, phase or labeled.")] = None,
    patient_pattern: Annotated[str, typer.Option(help="Pattern whose (...) in the case id is the patient.")] = "",
    group: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Make subgroups by this column too.")
    ] = None,
    source: Annotated[str, typer.Option(help="Where the cases come from, for the card.")] = "",
    split: Annotated[str, typer.Option(help="held_out, test, validation, training, or a name.")] = "",
    consensus: Annotated[str, typer.Option(help="Judge against the readers together: staple or majority.")] = "",
    only_predicted: Annotated[
        bool, typer.Option("--only-predicted", help="References without a mask do not count as failures.")
    ] = False,
    run: Annotated[Path | None, typer.Option(help="Run folder that gets the card, in MLflow and its bundle.")] = None,
    fit_temperature: Annotated[
        bool, typer.Option("--fit-temperature", help="Fit one on validation cases, for the bundle of --run.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Cases at a time; by default what fits.")] = None,
) -> None:
    """Judge masks.

    One card (OUT/index.html), with tables beside it. A failed case counts as a failure. Exit code 3: some cases failed
    or could not be judged.
    """
    from medseg.bundle import open_bundle
    from medseg.evaluation import Options
    from medseg.evaluation import evaluate as judge_folder
    from medseg.evaluation.folder import judged_cases
    from medseg.evaluation.pairing import masks_in
    from medseg.evaluation.recording import check_model, record, write_temperature
    from medseg.evaluation.temperature import temperature_of

    if consensus not in ("", *WAYS):
        raise ConfigError(f"--consensus is {consensus!r}; use {' or '.join(WAYS)}")
    if fit_temperature and (run is None or probabilities is None or split != "validation"):
        raise ConfigError("--fit-temperature needs validation cases: --split validation, --probabilities and --run")
    bundle = open_bundle(model or str(run)) if model or run else None
    if run is not None and bundle is not None:
        check_model(pred, open_bundle(run))
    options = Options(
        scans=scans,
        probabilities=probabilities,
        table=cases,
        patient_pattern=patient_pattern,
        groups=group or (),
        source=source,
        split=split,
        consensus=consensus or None,  # type: ignore[arg-type] # checked
        only_predicted=only_predicted,
        jobs=jobs,
    )
    judgment = _judgment(pred, bundle, recipe)
    with progress(len(masks_in(pred))) as (advance, _):
        content = judge_folder(
            pred, _readers(ref), out, judgment=judgment, bundle=bundle, options=options, done=advance
        )
    if run is not None:
        record(run, out, content)
    unwritten = ""
    if fit_temperature and run is not None and probabilities is not None:
        first = next(iter(_readers(ref).values()))
        found, n_cases = temperature_of(probabilities, first, judgment, case_ids=judged_cases(out))
        fitted, where = f"temperature {found:.3f}, of {n_cases} cases", f"the metadata of {run.name}'s bundle"
        if write_temperature(open_bundle(run), found, n_cases):
            typer.echo(f"{fitted}: in {where}")
        else:
            unwritten = f"{fitted}: could not be written to {where}; make it a folder that can be written, and repeat"
    about = content["about"]
    for warning in about["warnings"]:
        say(f"warning: {warning}")
    for region in judgment.regions:
        figures = content["summary"].get(f"{region}_dice", {})
        every = content["summary"].get(f"{region}_dice_all", {})
        if every.get("mean") is not None:
            mean = "-" if figures.get("mean") is None else f"{figures['mean']:.3f} (n={figures['n']})"
            typer.echo(f"{region}: Dice {mean}; every case counted {every['mean']:.3f} (n={every['n']})")
    typer.echo(
        f"{about['n']} cases, {about['failed']} failed, {about['missing']} references not judged, "
        f"{len(about['without_reference'])} masks without reference: see {out / 'index.html'}"
    )
    typer.echo(notice(synthetic=about["synthetic"]))
    if unwritten:
        raise ConfigError(unwritten)
    raise typer.Exit(FAILED if about["failed"] or about["missing"] else 0)


def _judgment(pred: Path, bundle: "Bundle | None", recipe: Path | None) -> "Judgment":
    """Labels and regions: of the recipe if given, else of the model, else of what predict wrote beside the masks."""
    from medseg.evaluation import Judgment
    from medseg.evaluation.judgment import recipe_file
    from medseg.evaluation.provenance import read_json

    if recipe is not None:
        return Judgment.of_recipe(recipe_file(recipe))
    if bundle is not None:
        return Judgment.of_recipe(bundle.recipe)
    written = read_json(pred / "run.json").get("judgment")
    if not written:
        raise ConfigError(
            f"{pred.name}: which label is what is not said there; add --model with the model that made the masks, or "
            "--recipe configs/unet_liver.json"
        )
    return Judgment.of_recipe(written)


def _readers(refs: list[str]) -> dict[str, Path]:
    """Name -> folder of each `--ref`."""
    readers: dict[str, Path] = {}
    for text in refs:
        match = None if Path(text).is_dir() else NAMED.fullmatch(text)
        name, folder = (match[1], match[2]) if match else ("reference", text)
        if name in readers:
            raise ConfigError(f"--ref: two readers are called {name!r}; write --ref NAME={folder}")
        readers[name] = Path(folder)
    return readers
