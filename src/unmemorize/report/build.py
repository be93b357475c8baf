"""Run directory to `report.html`: one page that holds its style, script and pictures and loads nothing.

Prompts, captions and file names are hostile text. Jinja escapes all of them, and the page's own content security policy
allows no script but the one whose hash it names, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unmemorize.core.outputs import write_output
from unmemorize.core.plain import to_json, well_formed
from unmemorize.core.records import Interval
from unmemorize.report.attack import attack_figure
from unmemorize.report.card import audit_card
from unmemorize.report.drawing import Figure
from unmemorize.report.figures import dose_figure, roc_figure, score_figure
from unmemorize.report.pictures import LARGEST, THUMB, Picture, file_hasher, picture_loader
from unmemorize.report.prose import plain_verdict
from unmemorize.report.rows import COPIES, SEVERITY, Group, Prompt, Shot, method_of, rank_prompts
from unmemorize.report.schema import Run, load_run

TEMPLATES = Path(__file__).parent / "templates"
WITH_PICTURES = 60  # prompts shown with their pictures, and every prompt that gave a copy
MOST_PICTURES = 400  # prompts with pictures in all; the others are rows of text
SHOWCASE = 6

NOT_APPLICABLE = {
    "detector": "Accuracy needs prompts that are known to be memorized and prompts that are known not to be.",
    "roc": "A curve needs prompts that are known to be memorized and prompts that are known not to be.",
    "text_control": "The control needs labelled prompts, and enough of them to train on.",
    "calibrate": "this run has no calibration stage.",
    "dose": "How often each picture was in the training set is not known.",
    "scores": "No prompt in this run has a score.",
}


Evidence = Literal["none", "thumb", "full"]
SIDES = {"thumb": THUMB, "full": LARGEST}


def build_report(run: Path, *, evidence: Evidence = "full") -> Path:
    """Write `report.html` and `model-card.md` into a run directory, from what is there: no model and no torch needed.

    Args:
        run: The run directory.
        evidence: Whether training pictures, and generated ones that copy them, are in the page: not at all, as
            thumbnails, or as large as the page shows them. Their hashes always are.

    Returns:
        The report's path.

    Raises:
        UserError: The run directory is missing, incomplete or damaged.
    """
    loaded = load_run(Path(run))
    write_text(Path(run) / "model-card.md", audit_card(loaded))
    return write_text(Path(run) / "report.html", _render(loaded, evidence))


def write_text(target: Path, text: str) -> Path:
    """Write a page in one piece, without characters that no page can hold."""
    write_output(str(target), well_formed(text).encode())
    return target


def rendered(template: str, **values: Any) -> str:
    """A page made of a template, in the style that all pages share."""
    style = (TEMPLATES / "style.css").read_text("utf-8")
    page: str = _environment().get_template(template).render(style=style, **values)
    return page


def _render(run: Run, evidence: Evidence) -> str:
    prompts = rank_prompts(run)
    pictured, text_only = _by_detail(prompts)
    script = (TEMPLATES / "table.js").read_text("utf-8")
    return rendered(
        "report.html.j2",
        run=run,
        s=run.summary,
        record=run.record,
        method=method_of(run),
        verdict=plain_verdict(run),
        pictured=pictured,
        text_only=text_only,
        rows=data_block([_compact(prompt) for prompt in text_only]),
        showcase=_showcase(prompts),
        severity=SEVERITY,
        kinds=sorted({prompt.kind for prompt in prompts if prompt.kind}),
        figures=_figures(run, prompts),
        usual=_usual(prompts),
        reason=lambda name: _reason(run, name),
        evidence=evidence,
        picture=picture_loader(run.path),
        training=evidence_loader(run.path, evidence),
        hashed=file_hasher(run.path),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _by_detail(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts that are shown with their pictures, the first and those with a copy, and those shown as a row of text."""
    pictured = [prompt for prompt in prompts if prompt.rank <= WITH_PICTURES or prompt.copied][:MOST_PICTURES]
    ranks = {prompt.rank for prompt in pictured}
    return pictured, [prompt for prompt in prompts if prompt.rank not in ranks]


def evidence_loader(run: Path, evidence: Evidence) -> Callable[[str], Picture | None]:
    """`picture_loader` for training pictures and copies: as large as `evidence` lets them be, or None for all."""
    return picture_loader(run, SIDES[evidence]) if evidence in SIDES else lambda path: None


def data_block(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element or begin another."""
    text = to_json(value, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match.group()):04x}", text)


def _compact(p: Prompt) -> list[Any]:
    """A row without pictures, for the page's script: the order of the values is in table.js."""
    shots = [[shot.seed, shot.distance, shot.verdict] for shot in p.shots]
    group = [{True: "planted", False: "ordinary", None: ""}[p.memorable], p.kind or "", p.copies]
    numbers = [_rounded(value) for value in (p.score, p.spread, p.bar, p.p_value)]
    return [p.rank, p.id, p.prompt, *group, *numbers, p.verdict, shots]


def _rounded(value: float | None) -> float | None:
    """Six decimals; None for what JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else round(value, 6)


def _usual(prompts: Sequence[Prompt]) -> tuple[float, ...]:
    """The median magnitude at each sampling step over prompts that gave no copy, to compare a curve with."""
    curves = [p.curve for p in prompts if p.curve and not p.copied]
    return tuple(median(step) for step in zip(*curves, strict=False))


def _environment() -> Environment:
    """The templates, with every text escaped and the filters that write numbers."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "interval": interval, "plain": plain}
    environment.filters |= {"duration": duration, "polyline": polyline, "chance": chance}
    return environment


def _figures(run: Run, prompts: Sequence[Prompt]) -> dict[str, Figure | None]:
    s = run.summary
    unknown = [row["name"] for row in run.mitigations if not row["attack_knows_it"]]
    return {
        "dose": dose_figure(s.dose) if s.dose else None,
        "roc": roc_figure(s.roc, s.detector, s.text_control) if s.roc else None,
        "scores": score_figure(prompts) if any(p.score is not None for p in prompts) else None,
        "attack": attack_figure(run.attack_curve, unknown) if run.attack_curve else None,
    }


def _reason(run: Run, name: str) -> str:
    """Why a part is not applicable: in the run's own words if it says so."""
    return next((s.reason for s in run.summary.states if s.name == name and s.reason), NOT_APPLICABLE[name])


def _showcase(prompts: Sequence[Prompt]) -> list[tuple[Prompt, Group, Shot]]:
    """The closest copies, each training picture once."""
    copies = []
    for prompt in prompts:
        for group in prompt.groups:
            copies += [(prompt, group, shot) for shot in group.shots if shot.verdict in COPIES]
    copies.sort(key=lambda copy: (_closeness(copy[2]), copy[0].rank))
    closest: dict[str, tuple[Prompt, Group, Shot]] = {}
    for prompt, group, shot in copies:
        closest.setdefault(group.nearest, (prompt, group, shot))
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


def chance(p: float | None) -> str:
    """A p-value: two digits, and never zero."""
    return "–" if p is None else f"{p:.2g}" if p >= 0.001 else "< 0.001"


def polyline(curve: Sequence[float], most: float, width: float = 160, height: float = 40) -> str:
    """Points of an SVG polyline: the curve from left to right, its zero at the bottom."""
    step = width / max(len(curve) - 1, 1)
    return " ".join(f"{i * step:.1f},{height - height * value / (most or 1):.1f}" for i, value in enumerate(curve))


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
