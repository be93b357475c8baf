"""A figure is well-formed SVG with its numbers beside it, whatever the numbers are and whoever draws beside it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import matplotlib
import pytest

from unmemorize.core.groups import LABELS
from unmemorize.report.attack import attack_figure
from unmemorize.report.figures import MOST_DOTS, Figure, dose_figure, roc_figure, score_figure
from unmemorize.report.rows import Group, Prompt, Shot
from unmemorize.report.schema import Detector, Dose, Roc


def prompt(rank: int, **changes: object) -> Prompt:
    given = {"id": f"p{rank}", "prompt": "x", "kind": None, "copies": None, "memorable": None, "score": float(rank)}
    fixed = {"rank": rank, "spread": None, "bar": 0.0, "groups": (), "verdict": "not generated"}
    return Prompt(**(given | fixed | changes))


def dose(copies: int, rate: float) -> Dose:
    return Dose(copies=copies, pictures=4, images=8, copied=2, copy_rate=rate, low=0, high=1)


COPY = (Group("references/a.png", None, (Shot(0, "images/a.png", 0.1, 0.2, "verbatim"),)),)
INTERVAL = {"value": 0.9, "low": 0.8, "high": 1.0}
DETECTOR = Detector(
    method="noise-gap", label="planted", positives=3, negatives=4, auc=INTERVAL, tpr=INTERVAL | {"fpr": 0.01}
)
CURVE = Roc(fpr=[0, 0, 1], tpr=[0, 0.8, 1])


def points(groups, *updates: int, low: float | None = 0.0) -> list[dict[str, object]]:
    """An attack's curve under one mitigation of a hostile name."""
    rate = {"copy_rate": 0.5, "low": low, "high": low if low is None else 1.0, "ratio": 0.4}
    return [{"mitigation": "<b>$x$\u202e", "group": g, "steps": n} | rate for g in groups for n in updates]


FIGURES = {
    "attack": lambda: attack_figure(points(("memorized", "negative", "never trained"), 0, 13, 50)),
    "attack-without-updates": lambda: attack_figure(points(("memorized",), 0, low=None), ["<b>$x$\u202e"]),
    "attack-of-an-unknown-group": lambda: attack_figure(points(("memorized", "<i>"), 0, 50)),
    "dose": lambda: dose_figure([dose(4, 0.5), dose(1, 0.0)]),
    "dose-of-none": lambda: dose_figure([dose(0, 0.0), dose(1, 0.1), dose(64, 0.9)]),
    "dose-of-one": lambda: dose_figure([dose(1, 0.5)]),
    "roc": lambda: roc_figure(CURVE, DETECTOR, None),
    "roc-alone": lambda: roc_figure(CURVE, None, None),
    "scores": lambda: score_figure([prompt(1, groups=COPY, verdict="verbatim"), prompt(2, memorable=False), prompt(3)]),
    "score-of-one": lambda: score_figure([prompt(1)]),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_the_same_well_formed_svg_every_time(draw):
    before = dict(matplotlib.rcParams)
    figure = draw()
    assert isinstance(figure, Figure)
    assert ET.fromstring(figure.svg).tag.endswith("svg")
    assert figure.frame
    assert figure.svg == draw().svg
    assert dict(matplotlib.rcParams) == before


def test_a_figure_ignores_the_style_of_whoever_draws_beside_it():
    plain = FIGURES["dose"]().svg
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert FIGURES["dose"]().svg == plain


def test_figures_follow_the_page_in_light_and_dark():
    svg = FIGURES["roc"]().svg
    assert "var(--ink, " in svg
    assert "var(--accent, " in svg
    assert "not applicable" in svg


def test_the_frame_holds_what_is_drawn():
    assert [row["copies"] for row in FIGURES["dose"]().frame] == [1, 4]
    assert FIGURES["roc"]().frame == [{"fpr": 0, "tpr": 0}, {"fpr": 0, "tpr": 0.8}, {"fpr": 1, "tpr": 1}]
    assert {row["group"] for row in FIGURES["scores"]().frame} == {"ordinary", "all prompts"}


def test_very_many_prompts_are_drawn_as_quantiles():
    few, many = (score_figure([prompt(rank) for rank in range(n)]) for n in (MOST_DOTS, MOST_DOTS + 1))
    assert len(many.svg) < 20_000 < len(few.svg)
    assert len(many.frame) == MOST_DOTS + 1


def test_the_groups_of_an_attack_are_called_as_on_the_terminal():
    """Whatever the audit's table calls them; a group that is not known by its own name."""
    rows = [
        {"mitigation": "none", "group": group, "steps": 0, "copy_rate": 0.5, "low": 0.2, "high": 0.8, "ratio": 1.0}
        for group in ("memorized", "negative", "never trained", "strangers")
    ]
    svg = attack_figure(rows).svg
    for label in (*LABELS.values(), "strangers"):
        assert f">{label}</text>" in svg
