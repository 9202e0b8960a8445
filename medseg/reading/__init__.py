"""Scan files to voxels and affine, or a refusal that says why."""

from medseg.reading.scan import Scan
from medseg.reading.volumes import SUFFIXES, read_channels, read_grid, read_label, read_scan, scan_stem

__all__ = ["SUFFIXES", "Scan", "read_channels", "read_grid", "read_label", "read_scan", "scan_stem"]
