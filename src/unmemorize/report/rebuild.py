"""The report of any kind of run."""

from __future__ import annotations

from pathlib import Path

from unmemorize.report.build import build_report
from unmemorize.report.data import build_data_report


def rebuild_report(run: Path) -> Path:
    """Write `report.html` into the directory of an audit or a data audit; returns its path.

    Raises:
        UserError: The run directory is missing, incomplete or damaged.
    """
    return (build_data_report if (run / "data.json").exists() else build_report)(run)
