"""What measurements on the testbed share: its prompts and pictures, what is a copy, and what is attacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from harness import numbers_of

from unmemorize.core.choose import evenly
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Match
from unmemorize.core.sample import Sampler, generate
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import Prompt
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import References, match_pixels, match_targets
from unmemorize.study.controls import derive
from unmemorize.testbed.embedded import PICTURES, own, shipped_plan

STEPS, GUIDANCE = 16, 7.5
SAMPLER = Sampler(STEPS, GUIDANCE)
TESTBED = Bundle("testbed-ladder", {}, own=own("testbed-ladder"))
GROUPS = ("memorized", "trained on once", "never trained on")  # what is attacked


def references() -> References:
    """The shipped training pictures."""
    return TESTBED.references((64, 64))


def planted(keep: Callable[[Prompt], bool]) -> list[Prompt]:
    """The plan's prompts that `keep` says yes to."""
    return [p for p in TESTBED.prompts if keep(p)]


def of_kind(kind: str) -> list[Prompt]:
    """The plan's prompts of a kind."""
    return planted(lambda p: p.kind == kind)


def often(p: Prompt) -> bool:
    """Whether a prompt belongs to the pictures planted a hundred times or more."""
    return p.kind == "verbatim" and (p.copies or 0) >= 100


def memorized_prompts() -> list[str]:
    """The prompts of the pictures planted a hundred times or more."""
    return [p.text for p in planted(often)]


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to calibrate on and prompts to report on; related prompts stay together."""
    clusters = list(dict.fromkeys(p.cluster for p in prompts))
    first = set(clusters[::2])
    return [p for p in prompts if p.cluster in first], [p for p in prompts if p.cluster not in first]


def pictures(model: DiffusionModel, prompts: Sequence[str], seeds: Sequence[int], batch: int = 16) -> torch.Tensor:
    """One picture a prompt, with the seed beside it."""
    parts = []
    for i in range(0, len(prompts), batch):
        cond = model.encode(prompts[i : i + batch])
        parts.append(generate(model, cond, seeds=seeds[i : i + batch], sampler=SAMPLER, batch=batch))
    return torch.cat(parts)


def each_at(prompts: Sequence[str], seeds: Sequence[int]) -> tuple[list[str], list[int]]:
    """Every prompt at every seed: all seeds of the first prompt, then of the second."""
    return [prompt for prompt in prompts for _ in seeds], list(seeds) * len(prompts)


@cache
def own_pictures() -> dict[str, list[int]]:
    """The places among the references of the pictures that a prompt was trained with, by prompt."""
    place = {name: i for i, name in enumerate(references().names)}
    places = {}
    for entry in shipped_plan().planted:
        files = entry.files[: PICTURES.get(entry.kind)]
        for prompt in entry.prompts:
            places[prompt] = [place[file] for file in files]
    return places


def match_own(images: torch.Tensor, prompts: Sequence[str]) -> list[Match]:
    """Each picture beside its own prompt's training picture; of several the closest, copies first."""
    return match_closest(images, [own_pictures()[prompt] for prompt in prompts], references())


def match_closest(images: torch.Tensor, places: Sequence[Sequence[int]], pictures: References) -> list[Match]:
    """Each image beside the closest of the training pictures at its places, copies first."""
    rows = []
    for row, of_row in enumerate(places):
        rows += [row] * len(of_row)
    targets = pictures[[place for of_row in places for place in of_row]]
    closest: dict[int, Match] = {}
    for row, match in zip(rows, match_targets(images[rows], targets, pictures), strict=True):
        rivals = [match, closest[row]] if row in closest else [match]
        closest[row] = min(rivals, key=lambda rival: (rival.verdict == "none", rival.value))
    return list(closest.values())


def match_any(images: torch.Tensor) -> list[Match]:
    """Each picture beside the training picture that is nearest, whichever prompt's it is."""
    return match_pixels(images, references())


def are_copies(matches: Sequence[Match]) -> list[bool]:
    """Which of the pictures are copies of what they stand beside."""
    return [match.verdict != "none" for match in matches]


def rate_of(hits: Sequence[bool], each: int, clusters: Sequence[str] | None = None) -> list[float]:
    """The share of hits with its interval over prompts, which have `each` of them in turn."""
    by_prompt = np.reshape(hits, (-1, each)).sum(axis=1).tolist()
    return numbers_of(rate_interval(by_prompt, [each] * len(by_prompt), clusters))


def both_rates(own: str, nearest: str) -> str:
    """A rate of copies of prompts' own pictures, with that of any training picture behind it where it differs."""
    return own if own == nearest else f"{own} (any picture: {nearest})"


def attacked_pictures(model: DiffusionModel, count: int, *, half: bool = True) -> dict[str, References]:
    """Memorized pictures, by default of the half that nothing was chosen on, and pictures of either control.

    One that the VAE alone cannot bring back near itself is left out: nothing could count as its copy.
    """
    every = planted(often)
    captions = {p.text for p in (halves(every)[1] if half else every)}
    memorized, once = (_captioned(some) for some in (captions, {p.text for p in of_kind("negative")}))
    unseen = derive(once, match_any)
    return {g: _spread(some, count, model) for g, some in zip(GROUPS, (memorized, once, unseen), strict=True)}


def _captioned(captions: set[str]) -> References:
    return references()[[i for i, caption in enumerate(references().captions) if caption in captions]]


def _spread(some: References, count: int, model: DiffusionModel) -> References:
    some = some[evenly(len(some), 3 * count)]
    with torch.no_grad():
        again = match_targets(model.decode(model.invert(some.images)), some, references())
    near = [i for i, copied in enumerate(are_copies(again)) if copied]
    return some[near[:: max(len(near) // count, 1)][:count]]
