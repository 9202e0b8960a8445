"""From scans to masks: windows, one case, a folder. Loads neither MONAI nor MLflow nor matplotlib."""

from medseg.inference.batch import predict_folder
from medseg.inference.predictor import Predictor
from medseg.inference.sliding_window import SliceBySlice, SlidingWindow

__all__ = ["Predictor", "SliceBySlice", "SlidingWindow", "predict_folder"]
