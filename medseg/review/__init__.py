"""Experiments reviewed: runs and evaluations compared case by case, and runs listed."""

from medseg.review.comparing import Comparison, compare
from medseg.review.entry import Entry
from medseg.review.evaluation_folder import read_evaluation
from medseg.review.listing import figures_of, list_rows, value_of
from medseg.review.page import headlines, write_comparison
from medseg.review.sources import read_entries
from medseg.review.tables import (
    cost_rows,
    interval_text,
    lesion_sentences,
    p_text,
    pairs_text,
    result_rows,
    unpaired_sentences,
)

__all__ = [
    "Comparison",
    "Entry",
    "compare",
    "cost_rows",
    "figures_of",
    "headlines",
    "interval_text",
    "lesion_sentences",
    "list_rows",
    "p_text",
    "pairs_text",
    "read_entries",
    "read_evaluation",
    "result_rows",
    "unpaired_sentences",
    "value_of",
    "write_comparison",
]
