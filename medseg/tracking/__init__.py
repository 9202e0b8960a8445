"""The one door to MLflow: runs, and the pages that show them."""

from medseg.tracking.page import serve_ui
from medseg.tracking.runs import Run, start_run
from medseg.tracking.store import store_uri

__all__ = ["Run", "serve_ui", "start_run", "store_uri"]
