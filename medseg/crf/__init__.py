"""Dense conditional random fields: a clean-up rule that looks at the scan, and a trainable layer."""

from medseg.crf.kernels import GaussianKernels
from medseg.crf.layer import CRFasRNN
from medseg.crf.mean_field import mean_field, potts
from medseg.crf.rule import DenseCRF, ScanRule, clean_up, needs_scan

__all__ = ["CRFasRNN", "DenseCRF", "GaussianKernels", "ScanRule", "clean_up", "mean_field", "needs_scan", "potts"]
