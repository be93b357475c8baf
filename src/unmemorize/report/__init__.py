"""The report: one self-contained HTML page, built from a run directory alone."""

from unmemorize.report.build import build_report

__all__ = ["build_report"]
