"""What a DICOM object is, from its class and ImageType: an image of a volume, or something else, and what."""

from pydicom.uid import UID

from medseg.reading.dicom.headers import FileHeader

STORAGE = "1.2.840.10008.5.1.4.1.1."
VOLUMES = {STORAGE + part for part in ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "128.1", "130")}  # CT, MR, PET
CT = {STORAGE + part for part in ("2", "2.1", "2.2")}
OTHER_KINDS = {  # by the start of the class's UID
    STORAGE + "88.": "a report (such as a dose report)",
    STORAGE + "66.4": "a segmentation (SEG)",
    STORAGE + "66.7": "a segmentation (label map)",
    STORAGE + "481.3": "contours (RTSTRUCT)",
    STORAGE + "481.2": "a radiation dose (RTDOSE)",
    STORAGE + "481.5": "a radiation plan (RTPLAN)",
    STORAGE + "7": "a secondary capture",
    STORAGE + "11.": "a presentation state",
    STORAGE + "104.": "a document",
    STORAGE + "66": "raw data",
    "1.2.840.10008.1.3.10": "a directory (DICOMDIR)",
}
DICOMDIR = "1.2.840.10008.1.3.10"
PROJECTIONS = {"MIP", "MINIP", "AVERAGE", "MAX_IP", "MIN_IP", "VRT", "VOLUME_RENDERING", "PROJECTION IMAGE", "3D"}


def kind_of(header: FileHeader) -> str:
    """Empty for an image of a volume, else what it is, in words that follow "is"."""
    if header.sop_class not in VOLUMES:
        named = next((kind for start, kind in OTHER_KINDS.items() if header.sop_class.startswith(start)), "")
        return named or f"of the class {UID(header.sop_class).name[:64]}, which is no CT, MR or PET volume"
    types = {part.upper() for part in (*header.image_type, *header.slices[0].kind)}
    if types & {"LOCALIZER", "SCOUT", "TOPOGRAM"}:
        return "a localizer"
    if "SCREEN SAVE" in types or "DOSE_INFO" in types:
        return "a secondary capture"
    return ""


def derived_as(image_type: tuple[str, ...]) -> str:
    """Empty for an original primary image, else what ImageType says instead."""
    types = [part.upper() for part in image_type]
    if types[:1] == ["DERIVED"] or types[1:2] == ["SECONDARY"] or PROJECTIONS & set(types[2:]):
        return "\\".join(types[:4])
    return ""
