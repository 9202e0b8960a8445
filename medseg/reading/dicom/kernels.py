"""Whether a CT reconstruction kernel is soft or sharp, from the names that the vendors give them.

Segmentation networks for organs are trained on soft kernels: sharp ones (bone, lung) are three times as noisy.
"""

import re
from typing import Literal

Sharpness = Literal["soft", "sharp", "unknown"]

SIEMENS = re.compile(r"^[A-Z][a-z]?(\d\d)[a-z]?\d?$")  # B30f, Br40d3, I31f, J45s, Qr40, Bl57
SIEMENS_SHARP = 50  # "B30s or B40s for body tissue ..., for higher sharpness B50s to B80s": Siemens' own manuals
CANON = re.compile(r"^F[CL](\d\d)")  # FC08, FC18-H, FC51, FL03
CANON_SOFT = (range(1, 30), range(41, 45), range(62, 69))  # body 1-19, head 20-29 and 41-44 and 62-68; FL as FC
VENDOR_NAMES: dict[str, Sharpness] = {
    # GE
    "STANDARD": "soft", "STND": "soft", "SOFT": "soft", "CHST": "soft", "CHEST": "soft",
    "DETAIL": "sharp", "LUNG": "sharp", "BONE": "sharp", "BONEPLUS": "sharp", "BONE PLUS": "sharp", "EDGE": "sharp",
    "ULTRA": "sharp",
    # Philips
    "A": "soft", "B": "soft", "C": "soft", "UA": "soft", "UB": "soft", "SA": "soft", "SB": "soft", "XCA": "soft",
    "XCB": "soft", "D": "sharp", "E": "sharp", "L": "sharp", "UC": "sharp", "YA": "sharp", "YB": "sharp",
    "YC": "sharp", "YD": "sharp",
}  # fmt: skip
WORDS: tuple[tuple[Sharpness, tuple[str, ...]], ...] = (  # United Imaging, newer Canon and GE: B_SOFT_B, BODY SHARP
    ("sharp", ("SHARP", "BONE", "LUNG", "EDGE", "DETAIL", "HRCT")),
    ("soft", ("SOFT", "STANDARD", "SMOOTH", "STND")),
)


def kernel_sharpness(kernel: str) -> Sharpness:
    """Soft, sharp, or unknown if the name is none that we know; of several names the first counts.

    Args:
        kernel: ConvolutionKernel, such as "B30f", "STANDARD", "I31f 3" or "FC18".

    Reference:
        Siemens, "SOMATOM Sensation operating instructions" (body kernels); the vendors' DICOM conformance statements.
        Names that the vendors do not explain are left unknown.
    """
    name = kernel.strip()
    first = name.split(" ")[0]
    siemens = SIEMENS.match(first)
    if siemens:
        return "soft" if int(siemens[1]) < SIEMENS_SHARP else "sharp"
    canon = CANON.match(first.upper())
    if canon:
        number = int(canon[1])
        return "soft" if any(number in numbers for numbers in CANON_SOFT) else "sharp"
    for candidate in (name.upper(), first.upper()):
        if candidate in VENDOR_NAMES:
            return VENDOR_NAMES[candidate]
    return next((sharpness for sharpness, words in WORDS if any(word in name.upper() for word in words)), "unknown")
