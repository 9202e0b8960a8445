"""Whether the voxels of a CT can be Hounsfield units (HU): air near -1000, water 0, soft tissue -200 to 300.

Exporters drop the rescale intercept, store signed numbers unsigned, or scale to a picture's gray values. A network then
answers without a word, and wrongly.

Reference:
    DICOM PS3.3 C.11.1.1.2 (rescale to HU); Kalender, "Computed Tomography", 2011 (HU of tissues).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medseg.errors import DataError
from medseg.reading.scan import Scan

SAMPLES_PER_AXIS = 48
OFFSET = 1024  # what exporters add to store HU unsigned
NOT_NEGATIVE_HU = -20.0  # noise around 0
NO_AIR_HU = -200.0
SOFT_TISSUE_HU = (-200.0, 300.0)
LEAST_SPAN = 20.0
LOWEST_PADDING_HU = -4096.0


def check_hu(scan: Scan, name: str) -> Scan:
    """`scan` itself, with a warning where its voxels hardly are HU; looks at a sample, in milliseconds.

    Args:
        scan: of a CT.
        name: file name, for messages.

    Raises:
        DataError: if they cannot be HU: one value throughout, offset by 1024, wrapped around by unsigned numbers, 8-bit
            gray values, or scaled to a small range.
    """
    voxels = scan.voxels
    sample = voxels[tuple(slice(None, None, max(1, length // SAMPLES_PER_AXIS)) for length in voxels.shape)]
    values = sample.astype(np.float32).ravel()
    if values.min() == values.max() and voxels.min() == voxels.max():
        raise DataError(f"{name}: every voxel is {values[0]:g}, so there is nothing to see; export the scan again")
    fault = _fault(values, is_8_bit=voxels.dtype == np.uint8)
    if fault:
        raise DataError(f"{name}: {fault}; export the scan in HU")
    doubt = _doubt(values)
    return replace(scan, warnings=(*scan.warnings, doubt)) if doubt else scan


def _fault(values: NDArray[np.float32], *, is_8_bit: bool) -> str:
    """Why the values cannot be HU; empty if they can."""
    low, high = np.quantile(values, (0.001, 0.999))
    if high - low < LEAST_SPAN:
        return f"values from {low:.3g} to {high:.3g} are scaled, not HU"
    if is_8_bit:
        return f"values from {low:.0f} to {high:.0f} in 8 bits are a picture's gray values, not HU"
    if _share(values, 60_000, 2**16) > max(0.001, 10 * _share(values, 10_000, 50_000)):
        return "values near 65000 are negative HU that were stored unsigned"
    if _looks_shifted_up(values):
        return f"values look like HU + {OFFSET} (soft tissue near {OFFSET}); its rescale intercept is lost"
    if low < -1.5 * OFFSET and _looks_shifted_down(values):
        return f"values look like HU - {OFFSET} (soft tissue near -{OFFSET}); its rescale intercept was applied twice"
    return ""


def _looks_shifted_up(values: NDArray[np.float32]) -> bool:
    """Fat and soft tissue in a narrow band around 1024, and little below it down to lung: no MR looks so."""
    tissue = _share(values, OFFSET - 150, OFFSET + 200)
    return tissue > 0.05 and _share(values, OFFSET - 600, OFFSET - 200) < 0.3 * tissue


def _looks_shifted_down(values: NDArray[np.float32]) -> bool:
    """No soft tissue, or noise below -1536, where a scan in HU has one padding value at most."""
    if _share(values, *SOFT_TISSUE_HU) < 0.01:
        return True
    beyond = values[values < -1.5 * OFFSET]
    return bool(beyond.size > 0.02 * values.size and np.ptp(np.quantile(beyond, (0.1, 0.9))) > 5)


def _doubt(values: NDArray[np.float32]) -> str:
    """What is unusual about the values; empty if nothing."""
    low, high = np.quantile(values, (0.001, 0.999))
    if low > NOT_NEGATIVE_HU:
        return f"values from {low:.0f} to {high:.0f} with no air or fat are hardly HU; check the modality"
    if low > NO_AIR_HU:
        return f"no air in the scan (values from {low:.0f} to {high:.0f}); it is cropped, or not in HU"
    if values.min() < LOWEST_PADDING_HU:
        return f"values down to {values.min():.0f} are no HU; a padding that was not said?"
    if _share(values, *SOFT_TISSUE_HU) < 0.01:
        return f"hardly any soft tissue ({SOFT_TISSUE_HU[0]:.0f} to {SOFT_TISSUE_HU[1]:.0f} HU) in the scan"
    return ""


def _share(values: NDArray[np.float32], low: float, high: float) -> float:
    return float(np.count_nonzero((values >= low) & (values <= high)) / values.size)
