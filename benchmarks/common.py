"""What the measurements on the testbed share: its prompts, its pictures, and how results are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Interval, Match
from unmemorize.core.run import atomic
from unmemorize.core.sample import Sampler, generate
from unmemorize.data.source import Prompt, read_references
from unmemorize.metrics.similarity import match_pixels, match_targets
from unmemorize.testbed.embedded import IMAGES, SHIPPED, own, shipped_plan

OUT = Path("docs/results")
STEPS, GUIDANCE = 16, 7.5
SAMPLER = Sampler(STEPS, GUIDANCE)
REFERENCES = read_references(IMAGES, (64, 64))
Row = dict[str, Any]


def planted(keep: Callable[[Prompt], bool]) -> list[Prompt]:
    """The plan's prompts that `keep` says yes to."""
    return [p for p in own().prompts if keep(p)]


def often(p: Prompt) -> bool:
    """Whether a prompt belongs to the pictures planted a hundred times or more."""
    return p.kind == "verbatim" and (p.copies or 0) >= 100


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to calibrate on and prompts to report on; related prompts stay together."""
    clusters = list(dict.fromkeys(p.cluster for p in prompts))
    first = set(clusters[::2])
    return [p for p in prompts if p.cluster in first], [p for p in prompts if p.cluster not in first]


def pictures(model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], batch: int = 16) -> torch.Tensor:
    """One picture a prompt, with the seed beside it."""
    parts = [
        generate(model, model.encode(prompts[i : i + batch]), seeds=seeds[i : i + batch], sampler=SAMPLER, batch=batch)
        for i in range(0, len(prompts), batch)
    ]
    return torch.cat(parts)


def own_pictures() -> dict[str, list[int]]:
    """The places in REFERENCES of the pictures that a prompt was trained with, by prompt."""
    place = {name: i for i, name in enumerate(REFERENCES.names)}
    own = {}
    for entry in shipped_plan().planted:
        files = [entry.file(k) for k in range(len(entry.pictures))][: SHIPPED.get(entry.kind)]
        for prompt in entry.prompts:
            own[prompt] = [place[file] for file in files]
    return own


def match_own(images: torch.Tensor, prompts: Sequence[str]) -> list[Match]:
    """Each picture beside its own prompt's training picture; of several the closest, copies first."""
    own = own_pictures()
    rows, places = [], []
    for row, prompt in enumerate(prompts):
        rows += [row] * len(own[prompt])
        places += own[prompt]
    closest: dict[int, Match] = {}
    for row, match in zip(rows, match_targets(images[rows], REFERENCES[places], REFERENCES), strict=True):
        rivals = [match, closest[row]] if row in closest else [match]
        closest[row] = min(rivals, key=lambda rival: (rival.verdict == "none", rival.value))
    return list(closest.values())


def match_any(images: torch.Tensor) -> list[Match]:
    """Each picture beside the training picture that is nearest, whichever prompt's it is."""
    return match_pixels(images, REFERENCES)


def are_copies(matches: Sequence[Match]) -> list[bool]:
    """Which of the pictures are copies of what they stand beside."""
    return [match.verdict != "none" for match in matches]


def similarity(match: Match) -> float:
    """1 - distance ratio, 0 or more: from 0.5 on it is a copy."""
    return max(1 - match.value, 0.0)


def both_rates(own: str, nearest: str) -> str:
    """A rate of copies of prompts' own pictures, with that of any training picture behind it where it differs."""
    return own if own == nearest else f"{own} (any picture: {nearest})"


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
