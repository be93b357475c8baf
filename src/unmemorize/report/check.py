"""The page of pictures that were looked for in a model: each beside the scores of the controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmemorize.report.build import rendered, write_text
from unmemorize.report.pictures import picture_loader

LEVEL = 0.05  # of false discoveries


def build_check(found: dict[str, Any], pictures: Path, out: Path) -> Path:
    """Write the page; returns its path.

    Args:
        found: What `unmemorize check` found.
        pictures: A folder that holds the pictures as 0.png, 1.png and so on, in the order of `found`.
        out: The page to write.
    """
    page = rendered(
        "check.html.j2",
        found=found,
        unusual=sum(any(test["q_value"] <= LEVEL for test in row["methods"].values()) for row in found["pictures"]),
        picture=picture_loader(pictures),
        places=places,
    )
    return write_text(out, page)


def places(score: float, known: Sequence[float]) -> tuple[float, list[float]]:
    """Where a score and those of the controls lie between the lowest and the highest of all, from 0 to 1."""
    low, high = min(score, *known), max(score, *known)
    width = high - low or 1.0
    return (score - low) / width, [(value - low) / width for value in known]
