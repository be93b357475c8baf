"""Run directory to `report.html`: one page that holds its style, script and pictures and loads nothing.

Prompts, captions and file names are hostile text. Jinja escapes all of them, and the page's own content security policy
allows no script but the one whose hash it names, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unmemorize.core.run import atomic
from unmemorize.report.figures import Figure, dose_figure, roc_figure, score_figure
from unmemorize.report.pictures import picture_loader
from unmemorize.report.rows import COPIES, SEVERITY, Group, Prompt, Shot, method_of, rank_prompts
from unmemorize.report.schema import Interval, Run, load_run

TEMPLATES = Path(__file__).parent / "templates"
WITH_PICTURES = 60  # prompts shown with their pictures; copies always are
COMPACT = 1000  # prompts shown as one line each; the rest is in the run's Parquet files
SHOWCASE = 6

NOT_APPLICABLE = {
    "detector": "Accuracy needs prompts that are known to be memorized and prompts that are known not to be.",
    "roc": "A curve needs prompts that are known to be memorized and prompts that are known not to be.",
    "text_control": "The control needs labelled prompts, and enough of them to train on.",
    "dose": "How often each picture was in the training set is not known.",
    "scores": "No prompt in this run has a score.",
}


Evidence = Literal["none", "thumb", "full"]


def build_report(run: Path, *, evidence: Evidence = "full") -> Path:
    """Write `report.html` into a run directory, from what is there: no model and no torch are needed.

    Returns:
        The report's path.

    Raises:
        UserError: The run directory is missing, incomplete or damaged.
    """
    page = _render(load_run(Path(run)))
    target = Path(run) / "report.html"
    with atomic(target) as temporary:
        temporary.write_bytes(page.encode())
    return target


def _render(run: Run) -> str:
    prompts = rank_prompts(run)
    full = [p for p in prompts if p.rank <= WITH_PICTURES or p.copied]
    rest = [p for p in prompts if p.rank > WITH_PICTURES and not p.copied]
    script = (TEMPLATES / "table.js").read_text("utf-8")
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            s=run.summary,
            record=run.record,
            method=method_of(run),
            full=full,
            with_pictures=WITH_PICTURES,
            rest=rest[:COMPACT],
            left_out=max(0, len(rest) - COMPACT),
            showcase=_showcase(prompts),
            severity=SEVERITY,
            kinds=sorted({p.kind for p in prompts if p.kind}),
            figures=_figures(run, prompts),
            reason=lambda name: _reason(run, name),
            picture=picture_loader(run.path),
            style=(TEMPLATES / "style.css").read_text("utf-8"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def environment() -> Environment:
    """The templates, with every text escaped and the filters that write numbers."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "interval": interval, "plain": plain}
    environment.filters |= {"duration": duration}
    return environment


def _figures(run: Run, prompts: Sequence[Prompt]) -> dict[str, Figure | None]:
    s = run.summary
    return {
        "dose": dose_figure(s.dose) if s.dose else None,
        "roc": roc_figure(s.roc, s.detector, s.text_control) if s.roc else None,
        "scores": score_figure(prompts) if any(p.score is not None for p in prompts) else None,
    }


def _reason(run: Run, name: str) -> str:
    """Why a part is not applicable: in the run's own words if it says so."""
    return next((s.reason for s in run.summary.states if s.name == name and s.reason), NOT_APPLICABLE[name])


def _showcase(prompts: Sequence[Prompt]) -> list[tuple[Prompt, Group, Shot]]:
    """The closest copies, each training picture once."""
    copies = [(p, g, shot) for p in prompts for g in p.groups for shot in g.shots if shot.verdict in COPIES]
    copies.sort(key=lambda found: (_closeness(found[2]), found[0].rank))
    closest: dict[str, tuple[Prompt, Group, Shot]] = {}
    for found in copies:
        closest.setdefault(found[1].nearest, found)
    return list(closest.values())[:SHOWCASE]


def _closeness(shot: Shot) -> float:
    return math.inf if shot.distance is None or math.isnan(shot.distance) else shot.distance


def number(value: float | None) -> str:
    """Three decimals, or three digits where those would say little; a dash for what is not there."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 100 else f"{value:,.3g}"


def percent(part: float, whole: float = 1) -> str:
    """A share in percent; a dash where there is nothing to divide by."""
    return f"{100 * part / whole:.0f}%" if whole else "–"


def interval(value: Interval) -> str:
    """The ends of an interval."""
    return f"[{value.low:.2f}, {value.high:.2f}]"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def plain(value: Any) -> str:
    """A recorded setting as text."""
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, ensure_ascii=False)
