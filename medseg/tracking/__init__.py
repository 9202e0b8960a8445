"""The one door to MLflow: runs, and the pages that show them."""

from medseg.tracking.page import serve_ui
from medseg.tracking.recorded import Recorded, artifact, find_recorded, flat_settings, list_runs, recorded_folder
from medseg.tracking.runs import Run, append_to, resume_run, start_run
from medseg.tracking.store import check_store, store_uri
from medseg.tracking.upkeep import Imported, import_runs, mark_dead_runs

__all__ = [
    "Imported",
    "Recorded",
    "Run",
    "append_to",
    "artifact",
    "check_store",
    "find_recorded",
    "flat_settings",
    "import_runs",
    "list_runs",
    "mark_dead_runs",
    "recorded_folder",
    "resume_run",
    "serve_ui",
    "start_run",
    "store_uri",
]
