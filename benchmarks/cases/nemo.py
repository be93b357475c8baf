"""NeMo's cost per prompt against searching one set of channels at a time, on the shipped testbed.

The straightforward search below tests one set per call, at every memorized seed, and keeps the unblocked prediction. It
is timed twice: with a prediction that is discarded in every test, as in the published code, and without. All three have
to find the same channels. Seconds are those of the processor, on one thread, so that other work counts less.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch
from branches import ordinary, subject_of
from cases.panel_pruning import memorized
from harness import Options, Row, Study, table
from torch import Tensor

from unmemorize.core.methods import Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.localize.nemo import Nemo
from unmemorize.localize.reference import Reference, Start, activations, cache_folder, cached_reference
from unmemorize.metrics.ssim import pairwise_ssim, scales_for, ssim


class OneByOne:
    """The same search as plainly as it can be written."""

    def __init__(
        self, model: DiffusionModel, prompt: str, reference: Reference, settings: Nemo, wasteful: bool
    ) -> None:
        self.model, self.reference, self.settings, self.wasteful = model, reference, settings, wasteful
        self.cond, self.start = model.encode([prompt]), Start.of(model, range(settings.seeds))
        self.layers = model.text_projections(settings.layers)
        self.limit = reference.threshold if settings.threshold is None else settings.threshold

    def predict(self, blocked: dict[str, set[int]], seeds: list[int]) -> Tensor:
        with ExitStack() as hooks:
            for name, channels in blocked.items():

                def change(_module, _inputs, values, channels=tuple(channels)):
                    values = values.clone()
                    values[..., list(channels)] = 0
                    return values

                hooks.callback(self.layers[name].register_forward_hook(change).remove)
            rows = self.cond[torch.zeros(len(seeds), dtype=torch.long)]
            if self.wasteful:
                self.start.differences(self.model, rows, torch.tensor(seeds))
            return self.start.differences(self.model, rows, torch.tensor(seeds))

    def test(self, blocked: dict[str, set[int]]) -> float:
        return float(ssim(self.free[self.kept], self.predict(blocked, self.kept), self.scales).max())

    def __call__(self) -> dict[str, list[int]]:
        everyone = list(range(self.settings.seeds))
        self.free = self.predict({}, everyone)
        self.scales = scales_for(*self.free.shape[-2:])
        strength = pairwise_ssim(self.free, self.scales).amax(1)
        self.kept = [i for i in everyone if strength[i] > self.limit]
        if not self.kept:
            return {}
        blocked = self.initial()
        for name in reversed(self.layers):
            without = {n: c for n, c in blocked.items() if n != name}
            if blocked[name] and self.test(without) <= self.limit:
                blocked[name] = set()
        for name in reversed(self.layers):
            for channel in sorted(blocked[name]):
                without = blocked | {name: blocked[name] - {channel}}
                if self.test(without) <= self.limit:
                    blocked = without
        return {name: sorted(channels) for name, channels in blocked.items() if channels}

    def initial(self) -> dict[str, set[int]]:
        settings, values = self.settings, activations(self.model, self.cond, self.settings.layers)
        theta, k, before = settings.start, 0, None
        while theta >= settings.minimum:
            blocked = {}
            for name, (a,) in values.items():
                z = (a - self.reference.mean[name]).abs() / self.reference.std[name].clamp(min=1e-12)
                blocked[name] = set((z > theta).nonzero()[:, 0].tolist()) | set(a.topk(k).indices.tolist())
            if blocked != before and (reached := self.test(blocked)) <= self.limit:
                return blocked
            theta, k, before = theta - settings.decrement, k + 1, blocked
        self.limit = reached + 1e-3
        return blocked


def one_by_one(
    model: DiffusionModel, prompts: Sequence[str], reference: Reference, settings: Nemo, wasteful: bool
) -> list[dict[str, list[int]]]:
    return [OneByOne(model, prompt, reference, settings, wasteful)() for prompt in prompts]


def ours(model: DiffusionModel, prompts: Sequence[str], settings: Nemo) -> list[dict[str, list[int]]]:
    found = settings.find(Subject(model), model.encode(prompts))
    return [{n: m.nonzero()[:, 0].tolist() for n, m in prompt.masks.items()} for prompt in found.per_prompt]


def measure(options: Options) -> Row:
    """Evaluations and seconds of the three searches."""
    torch.set_num_threads(1)
    model = subject_of("C").model
    _, others = ordinary()
    usual = cached_reference(model, model.encode(others), cache_folder())
    settings = Nemo(layers=options.layers, minimum=options.theta, reference=usual)
    chosen = [entry.prompts[0] for entry in memorized("C")[: options.prompts]]
    ways = {
        "one at a time, a prediction discarded in each test": lambda: one_by_one(model, chosen, usual, settings, True),
        "one at a time": lambda: one_by_one(model, chosen, usual, settings, False),
        "batched": lambda: ours(model, chosen, settings),
    }
    rows, results = [], []
    for name, way in ways.items():
        since = time.process_time()
        with model.counted() as cost:
            results.append(way())
        seconds = time.process_time() - since
        rows.append({"search": name, "evaluations": cost.forward / len(chosen), "seconds": seconds / len(chosen)})
    assert all(result == results[0] for result in results), "the searches found different channels"
    found = sum(bool(result) for result in results[0])
    return {"prompts": len(chosen), "memorized": found, "layers": settings.layers, "rows": rows}


def page(numbers: Row) -> Iterator[str]:
    """One row a search."""
    said = f"{numbers['prompts']} prompts, {numbers['memorized']} of them memorized, layers {numbers['layers']}."
    yield from (f"{said} All searches found the same channels.", "")
    ours, rows = numbers["rows"][-1], []
    for row in numbers["rows"]:
        times = [f"{row[what] / ours[what]:.1f}" for what in ("evaluations", "seconds")]
        rows.append([row["search"], f"{row['evaluations']:.0f}", f"{row['seconds']:.1f}", *times])
    head = "search | evaluations per prompt | seconds per prompt | times our evaluations | times our seconds"
    yield from table(head, rows)


STUDY = Study(
    title="Speed of NeMo",
    about="The same search, with the same result, as plainly as it can be written.",
    page=page,
    measure=measure,
    options={"prompts": 2, "layers": "all", "theta": 1.0},
)
