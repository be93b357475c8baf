"""What an attack adds up to, where attacked pictures and controls are known copies."""

from __future__ import annotations

import numpy as np

from unmemorize.attack.extraction import Extraction
from unmemorize.metrics.similarity import PIXELS
from unmemorize.study.extracted import summarise

STEPS = (0, 1, 10, 25, 50)


def extraction_of(copied):
    """An attack with these copies, (n, restarts, steps, seeds)."""
    n, restarts, steps, seeds = copied.shape
    return Extraction(
        names=tuple(map(str, range(n))),
        steps=STEPS,
        seeds=tuple(range(seeds)),
        values=np.where(copied, 0.1, 1.0),
        verdicts=np.where(copied, "verbatim", "none"),
        moved=np.zeros((n, restarts, steps)),
        start=np.ones((n, restarts)),
        original_values=np.full((n, seeds), np.nan),
        original_verdicts=np.full((n, seeds), "none"),
        evaluations=400,
        mirrored=np.zeros(copied.shape, dtype=bool),
        original_mirrored=np.zeros((n, seeds), dtype=bool),
    )


def scattered():
    """Four of 80 generations at each of five steps, of other pictures each time: in the end all 20 pictures."""
    copied = np.zeros((20, 1, 5, 4), dtype=bool)
    for step in range(5):
        copied[4 * step : 4 * step + 4, 0, step, 0] = True
    return copied


def test_the_same_copies_in_attacked_pictures_and_controls_are_no_extraction():
    """At each step 5% of the controls' generations are copies, yet as many pictures come back as were attacked."""
    same = extraction_of(scattered())
    summary = summarise({"attacked": same, "control": same, "unseen": same}, PIXELS, 0.05)
    assert summary["search_budget"] is None
    assert set(summary["extracted"].values()) == {None}
    assert summary["sentence"].startswith("not an extraction")


def test_the_harder_control_is_printed_beside_the_pictures_and_counted_like_them():
    """All attacked pictures come back, one of 20 in one control within 25 updates, two of it within 50."""
    control = np.zeros((20, 1, 5, 4), dtype=bool)
    control[3, 0, 2, 1] = control[4, 0, 4, 2] = True
    groups = {"attacked": scattered(), "control": np.zeros_like(control), "unseen": control}
    summary = summarise({group: extraction_of(copied) for group, copied in groups.items()}, PIXELS, 0.05)
    assert summary["search_budget"] == 25
    assert {group: share["value"] for group, share in summary["extracted"].items()} == {
        "attacked": 16 / 20,
        "control": 0,
        "unseen": 1 / 20,
    }
    assert "16 of 20 pictures come back within 25 updates, and 1 of 20 of the harder control's" in summary["sentence"]
    assert summary["copy_rate"] == summary["curve"]["attacked"][-1]["copies"]["value"] == 0.05
