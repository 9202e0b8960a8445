"""What a run tells its reader: measurements and tables; pictures, which need matplotlib, in `report.pictures`."""

from medseg.report.measurements import measure, write_csv

__all__ = ["measure", "write_csv"]
