"""`medseg predict`."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli.common import FAILED, app, progress, say
from medseg.errors import ConfigError

if TYPE_CHECKING:
    from medseg.inference.batch import FolderRun, Outcome

STOPPED, BY_SIGNAL = 4, 128  # exit codes: stopped early; 128 + the signal's number, 130 for Ctrl-C
PRECISIONS = ("float32", "bfloat16", "float16")
IDS = ("default", "original", "pseudonym")


@app.command()
def predict(
    scans: Annotated[
        Path,
        typer.Argument(
            metavar="SCANS",
            help="Folder of scans, DICOM series or images; or one file, a zip of DICOM, or an edited cases.csv.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the masks, the report and the pages.")],
    model: Annotated[
        str,
        typer.Option(help="Bundle (folder or zip), run folder or MLflow run id; without it, MEDSEG_MODELS is listed."),
    ] = "",
    device: Annotated[str, typer.Option(help="Where the network runs: auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16, in place of the model's own.")] = "",
    gpu_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB", help="Take no more of the GPU than this, where others share it; by default what is free."
        ),
    ] = None,
    mirroring: Annotated[
        bool,
        typer.Option(
            "--mirroring",
            help="Average over mirrored copies of each window: often a little better, and several times slower.",
        ),
    ] = False,
    ids: Annotated[
        str,
        typer.Option(
            help="How cases are named. default: files by name, DICOM series by a pseudonym; original: series by "
            "folder and UID; pseudonym: all by one. OUT/key.csv tells who is who."
        ),
    ] = "default",
    all_series: Annotated[
        bool, typer.Option("--all-series", help="Segment every DICOM volume, not the best one of each study.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Do at most so many cases now; the next run goes on.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again the cases that failed before.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare every byte of scans and masks to find what has changed, not size, time and ends alone.",
        ),
    ] = False,
    redo: Annotated[
        bool,
        typer.Option("--redo", help="Where OUT was made with another model or other settings, do all its cases again."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first failure.")] = False,
    formats: Annotated[
        str,
        typer.Option(
            metavar="seg,rtstruct,nrrd,stl",
            help="Further files of each case, for archives and viewers; several with commas between.",
        ),
    ] = "",
    instances: Annotated[
        bool, typer.Option("--instances", help="Write a mask whose values are the lesions' numbers, too.")
    ] = False,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Write a map of how sure the network is of each voxel's label, in percent."),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write the probability of every class at every voxel; large.")
    ] = False,
    pages: Annotated[
        bool, typer.Option("--pages/--no-pages", help="Write a page for each case, and index.html.")
    ] = True,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write the tables as Parquet, too.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what would be done and what memory, disk and time it takes; write nothing."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each event.")] = False,
) -> None:
    """Segment a folder of scans and measure what was found.

    Writes a mask for each scan, on the scan's own grid, and a row in report.csv. Run it again to do what is missing or
    has changed; a mask that you have edited is kept. Exit code 0: all done; 2: wrong input or setting; 3: some scans
    failed; 4: stopped early; 130: Ctrl-C.
    """
    for name, value, known in (("ids", ids, IDS), ("precision", precision or PRECISIONS[0], PRECISIONS)):
        if value not in known:
            raise ConfigError(f"--{name} is {value!r}; use {', '.join(known)}")
    try:
        from medseg.bundle import open_bundle
        from medseg.formats.choice import parse_formats
        from medseg.inference.batch import FolderRun, Options
        from medseg.inference.cases import check_out, list_cases
        from medseg.inference.identity import has_key, open_key, write_key_table
        from medseg.inference.messages import Extras
        from medseg.inference.run_file import write_run
        from medseg.inference.tables import check_parquet
        from medseg.models import chosen_model

        check_out(scans, out)
        if parquet:
            check_parquet()
        bundle = open_bundle(chosen_model(model))
        with _writing_out():
            key = b"dry run" if dry_run and not has_key(out) else open_key(out)
        found = list_cases(
            scans,
            channels=bundle.channels,
            unit=bundle.unit,
            ids=ids,
            key=key,
            all_series=all_series,
            modality=bundle.modality,
        )
        cases = found.cases
        if found.passed_over and not as_json:
            say(f"{found.passed_over} files of other kinds are passed over")
        options = Options(
            precision=precision or None,  # type: ignore[arg-type] # checked
            mirroring=mirroring,
            redo=redo,
            retry_failed=retry_failed,
            verify=verify,
            strict=strict,
            limit=limit,
            isolate=os.environ.get("MEDSEG_IN_PROCESS") != "1",
            extras=Extras(
                pages=pages,
                formats=parse_formats(formats),
                instances=instances,
                confidence=confidence,
                probabilities=probabilities,
            ),
            parquet=parquet,
            gpu_memory_gb=gpu_memory,
            root=scans if scans.is_dir() else scans.parent,
        )
        with _writing_out():
            if not dry_run:
                write_key_table(out, cases)
            run = FolderRun(cases, out, bundle, device=device, options=options, dry=dry_run)
        if dry_run:
            _forecast(run, as_json=as_json)
            return
        with _writing_out():
            write_run(
                out,
                run.settings,
                command=sys.argv[1:],
                cases=cases,
                to_do=len(run.todo),
                device=device,
                paths={str(scans): "SCANS", str(out): "OUT", model: "MODEL"},
                bundle=bundle,
            )
        outcome = _do(run, as_json=as_json)
    except KeyboardInterrupt:
        raise typer.Exit(BY_SIGNAL + 2) from None
    raise typer.Exit(_end(run, outcome, as_json=as_json))


def _do(run: "FolderRun", *, as_json: bool) -> "Outcome":
    """Do a run; tell each case as JSON, or failures alone and the time left."""
    started, tried = time.monotonic(), 0
    total = len(run.todo) + sum(bool(case.problem) for case in run.cases)
    if as_json:
        _event("start", cases=len(run.cases), to_do=len(run.todo), **run.told)
    with progress(total if not as_json else 0) as (advance, note):

        def on_row(row: dict[str, Any]) -> None:
            nonlocal tried
            tried += 1
            left = (time.monotonic() - started) / tried * max(0, total - tried)
            if as_json:
                _event("case", **row, seconds_left=round(left))
            elif row["status"] == "failed":
                note(f"{row['case_id']}: {row['message']}")
            advance()

        return run.do(on_row)


def _end(run: "FolderRun", outcome: "Outcome", *, as_json: bool) -> int:
    """Say how a run ended; its exit code."""
    from medseg.inference.run_file import end_run

    counts = Counter(row["status"] for row in outcome.rows)
    warned = sum(bool(row.get("warnings")) for row in outcome.rows)
    flagged = sum(bool(row.get("flags")) for row in outcome.rows)
    code = FAILED if counts["failed"] else 0
    if outcome.signal:
        code = BY_SIGNAL + outcome.signal
    elif outcome.stop is not None:
        code = STOPPED
    stopped = outcome.stop.message if outcome.stop else ""
    with suppress(OSError):  # a full disk: the exit code and the line below say it
        end_run(run.out, counts, stopped=stopped)
    if as_json:
        _event("end", **counts, with_warnings=warned, to_look_at=flagged, stopped=stopped, exit_code=code)
        return code
    if stopped:
        say(f"stopped: {stopped}")
    for reason, count in _skipped(outcome.rows) if not counts["done"] else ():
        say(f"{count} skipped: {reason}")
    further = {"to look at": flagged, **{status: counts[status] for status in ("skipped", "edited", "pending")}}
    others = "".join(f", {count} {name}" for name, count in further.items() if count)
    before = f" ({run.failed_before} failed before: --retry-failed does them again)" if run.failed_before else ""
    typer.echo(
        f"{counts['done']} done, {counts['failed']} failed, {warned} with warnings{others}: "
        f"see {run.out / 'report.csv'}{before}"
    )
    typer.echo(run.bundle.notice)
    return code


def _skipped(rows: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """The commonest reasons why cases were skipped, and how often each."""
    return Counter(str(row["message"]) for row in rows if row["status"] == "skipped").most_common(3)


def _forecast(run: "FolderRun", *, as_json: bool) -> None:
    """Say what a run would take."""
    import shutil

    from medseg.inference.estimates import forecast
    from medseg.memory import available_mb

    found = forecast(run.todo, run.bundle, run.rows, extras=run.options.extras)
    folder = next(path for path in (run.out, *run.out.resolve().parents) if path.is_dir())
    free_mb = shutil.disk_usage(folder).free / 2**20
    if as_json:
        sizes = {"memory_mb": round(found.memory_mb), "disk_mb": round(found.disk_mb), "seconds": found.seconds}
        _event("forecast", cases=found.cases, to_do=len(run.todo), **sizes)
        return
    for case_id, told in found.cases.items():
        typer.echo(f"{case_id}: {told}")
    took = "known once a case is done" if found.seconds is None else f"about {timedelta(seconds=round(found.seconds))}"
    typer.echo(
        f"{len(run.todo)} of {len(run.cases)} cases to do; memory beside the network: {found.memory_mb:.0f} MB for the "
        f"largest ({available_mb()} free); masks and maps: at most {found.disk_mb:.0f} MB ({free_mb:.0f} free); "
        f"time: {took}"
    )


def _event(name: str, **content: Any) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    typer.echo(json.dumps({"event": name, "time": at, **content}, default=str))


@contextmanager
def _writing_out() -> Iterator[None]:
    """Say in one line that OUT cannot be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"OUT cannot be written ({reason}); free space, or choose another folder") from error
