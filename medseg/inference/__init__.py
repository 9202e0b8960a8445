"""From scans to masks: windows, one case, a folder. Loads neither MONAI nor MLflow nor matplotlib."""

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
