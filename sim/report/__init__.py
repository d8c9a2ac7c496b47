"""The report of a run: read its rows, sum them up, show them in a terminal and on one page."""

from sim.report.page import write_page
from sim.report.rows import RunFiles, read_run
from sim.report.summary import Summary, pool, summarize, summarize_files, transcripts_of, write_summary
from sim.report.table import print_summary

__all__ = [
    "RunFiles",
    "Summary",
    "pool",
    "print_summary",
    "read_run",
    "summarize",
    "summarize_files",
    "transcripts_of",
    "write_page",
    "write_summary",
]
