"""The evaluation card: masks against references, case by case and summed up, in one folder."""

from medseg.evaluation.comparing import Options, evaluate
from medseg.evaluation.folder import write_folder
from medseg.evaluation.judging import Record, judge_arrays
from medseg.evaluation.judgment import Judgment

__all__ = ["Judgment", "Options", "Record", "evaluate", "judge_arrays", "write_folder"]
