"""The report of a run: read its rows, sum them up, show them in a terminal and on one page.

Knows the files of a run folder and the words of each task; not how the run was made.
"""

from sim.report.page import write_page, write_report
from sim.report.summary import RunSummary, pool, summarize, transcripts_of, write_summary
from sim.report.table import print_summary

__all__ = [
    "RunSummary",
    "pool",
    "print_summary",
    "summarize",
    "transcripts_of",
    "write_page",
    "write_report",
    "write_summary",
]
