"""The one door to MLflow: runs, and the pages that show them."""

from medseg.tracking.page import serve_ui
from medseg.tracking.runs import Run, resume_run, start_run
from medseg.tracking.store import check_store, store_uri
from medseg.tracking.upkeep import Imported, import_runs, mark_dead_runs

__all__ = [
    "Imported",
    "Run",
    "check_store",
    "import_runs",
    "mark_dead_runs",
    "resume_run",
    "serve_ui",
    "start_run",
    "store_uri",
]
