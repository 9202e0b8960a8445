"""From scans to masks: windows, one case, a folder. Loads neither MONAI nor MLflow nor matplotlib.

What is here is imported when it is asked for: a re-run that finds nothing to do, and `medseg status`, load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.inference.batch import predict_folder
    from medseg.inference.ensemble import reduce_ensemble, write_ensemble
    from medseg.inference.predictor import Predictor, Prepared, ensemble_logits
    from medseg.inference.sliding_window import SliceBySlice, SlidingWindow
    from medseg.inference.tuning import Tuning

__all__ = [
    "Predictor",
    "Prepared",
    "SliceBySlice",
    "SlidingWindow",
    "Tuning",
    "ensemble_logits",
    "predict_folder",
    "reduce_ensemble",
    "write_ensemble",
]

MODULES = {
    "Predictor": "predictor",
    "Prepared": "predictor",
    "SliceBySlice": "sliding_window",
    "SlidingWindow": "sliding_window",
    "Tuning": "tuning",
    "ensemble_logits": "predictor",
    "predict_folder": "batch",
    "reduce_ensemble": "ensemble",
    "write_ensemble": "ensemble",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
