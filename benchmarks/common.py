"""What the measurements on the testbed share: its prompts, its pictures, and how results are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from unmemorize.core.results import Interval
from unmemorize.core.run import atomic
from unmemorize.core.sample import generate
from unmemorize.data.source import Prompt, read_references
from unmemorize.jobs.inputs import prompts_of
from unmemorize.metrics.similarity import match_pixels
from unmemorize.models.unet import UNetModel
from unmemorize.testbed.embedded import IMAGES

OUT = Path("docs/results")
STEPS, GUIDANCE = 16, 7.5
REFERENCES = read_references(IMAGES, (64, 64))
Row = dict[str, Any]


def planted(keep: Callable[[Prompt], bool]) -> list[Prompt]:
    """The plan's prompts that `keep` says yes to."""
    return [p for p in prompts_of("testbed") if keep(p)]


def often(p: Prompt) -> bool:
    """Whether a prompt belongs to the pictures planted a hundred times or more."""
    return p.kind == "verbatim" and (p.copies or 0) >= 100


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to calibrate on and prompts to report on; related prompts stay together."""
    clusters = list(dict.fromkeys(p.cluster for p in prompts))
    first = set(clusters[::2])
    return [p for p in prompts if p.cluster in first], [p for p in prompts if p.cluster not in first]


def pictures(model: UNetModel, prompts: Sequence[str], seeds: Sequence[int], batch: int = 16) -> torch.Tensor:
    """One picture a prompt, with the seed beside it."""
    parts = [
        generate(model, model.encode(prompts[i : i + batch]), seeds=seeds[i : i + batch], steps=STEPS)
        for i in range(0, len(prompts), batch)
    ]
    return torch.cat(parts)


def matches(images: torch.Tensor) -> tuple[list[bool], list[float]]:
    """Whether each picture is a copy, and its similarity: 1 - distance ratio, 0 or more; 0.5 and above is a copy."""
    found = match_pixels(images, REFERENCES)
    return [m.verdict != "none" for m in found], [max(1 - m.value, 0.0) for m in found]


def show(interval: Interval | None, digits: int = 3) -> str:
    """A value with its interval."""
    if interval is None:
        return "–"
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def write(name: str, numbers: Any, page: Sequence[str]) -> None:
    """Write docs/results/NAME.json and NAME.md, and print the page."""
    text = "\n".join(page) + "\n"
    for ending, content in (("json", json.dumps(numbers, indent=1) + "\n"), ("md", text)):
        with atomic(OUT / f"{name}.{ending}") as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(text)


def kept(name: str, same: Row) -> Row:
    """What docs/results/NAME.json holds, if it was measured under the same conditions; else these and no settings."""
    path = OUT / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return before if all(before.get(key) == value for key, value in same.items()) else same | {"settings": {}}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *rows)]
