"""medseg: medical-image segmentation one can trust, built on MONAI. Not a medical device."""

__version__ = "0.1.0"
