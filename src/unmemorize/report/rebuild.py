"""The report of any kind of run."""

from __future__ import annotations

from pathlib import Path

from unmemorize.report.build import Evidence, build_report
from unmemorize.report.data import build_data_report


def rebuild_report(run: Path, *, evidence: Evidence = "full") -> Path:
    """Write `report.html` into the directory of an audit or a data audit; returns its path.

    `evidence` decides what an audit's page shows of training pictures; a data audit's page consists of them.

    Raises:
        UserError: The run directory is missing, incomplete or damaged.
    """
    return build_data_report(run) if (run / "data.json").exists() else build_report(run, evidence=evidence)
