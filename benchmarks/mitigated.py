"""The testbed under each of its mitigations, by name: what is changed in its weights or in sampling."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from common import STEPS, Row
from erase import SPECS, folder
from torch import Tensor
from unmemorize.mitigate.prompt import generate_guarded, limits_of
from unmemorize.mitigate.weights import Edit

from unmemorize.core.hooks import replaced
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.sample import first_unconditional, generate
from unmemorize.core.specs import LocateSpec
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.detect.noise import noise_gap_at_start
from unmemorize.jobs import locate
from unmemorize.localize.nemo import NemoSettings, nemo
from unmemorize.localize.reference import Reference
from unmemorize.localize.wanda import wanda
from unmemorize.mitigate.perturb import add_embedding_noise
from unmemorize.models.load import load

PRUNED = {"Wanda 1%": 0.01, "Wanda 10%": 0.1, "Wanda 40%": 0.4}
NEMO = ("NeMo, θ ≥ 0.25", "NeMo, refined")  # each prompt's own channels, unrefined, and all prompts' together, θ ≥ 1
SAMPLED = ("guard", "embedding noise")
UNTRAINED = ("none", *SAMPLED, *PRUNED, *NEMO)
NOISE = 2.0  # of the embedding: less hides nothing on the testbed (benchmarks/mitigation.py)


@dataclass(frozen=True)
class Weights:
    """A fine-tuned denoiser's weights, applied as an edit is."""

    values: dict[str, Tensor]

    def applied(self, model: DiffusionModel) -> AbstractContextManager[None]:
        return replaced(model.denoiser, self.values)


@dataclass(frozen=True)
class Mitigation:
    """An edit for all, called "all", or one for every memorized prompt; a way to sample; and what they took to make."""

    edits: dict[str, Edit | Weights]
    generate: Callable[..., Tensor]
    evaluations: int
    seconds: float

    def edit_for(self, caption: str | None, place: int) -> Edit | Weights:
        """The caption's own edit, or, if it has none, one of the others in turn."""
        return self.edits.get(caption or "") or list(self.edits.values())[place % len(self.edits)]


def mitigation(model: DiffusionModel, name: str, prompts: Sequence[str]) -> Mitigation:
    """One of UNTRAINED, or a model of benchmarks/erase.py."""
    usual = usual_activations(model) if name in NEMO else None  # found once, whatever is pruned then: no cost of one
    since = time.perf_counter()
    with model.counted() as cost:
        sampler = {"guard": guarded, "embedding noise": lambda _: noisy}.get(name, lambda _: generate)(model)
        edits = edits_of(model, name, prompts, usual)
    return Mitigation(edits, sampler, cost.forward, time.perf_counter() - since)


def edits_of(
    model: DiffusionModel, name: str, prompts: Sequence[str], usual: Reference | None
) -> dict[str, Edit | Weights]:
    """An edit for all, called "all", or one for every memorized prompt."""
    if name in SPECS:
        return {"all": Weights(dict(load(str(folder(name) / "model")).denoiser.named_parameters()))}
    hashed = model.fingerprint
    if name in PRUNED:
        return {"all": Edit.of(wanda(model, prompts, sparsity=PRUNED[name]), hashed)}
    if usual is None:
        return {"all": Weights({})}
    if name == "NeMo, refined":
        return {"all": Edit.of(nemo(model, prompts, usual, NemoSettings(layers="all")), hashed)}
    found = nemo(model, prompts, usual, NemoSettings(layers="all", minimum=0.25, refine=False))
    return {prompt.prompt: Edit.of(found, hashed, prompt=prompt) for prompt in found.per_prompt}


def usual_activations(model: DiffusionModel) -> Reference:
    """What ordinary prompts activate, which NeMo compares with; kept between runs."""
    everyone = locate.ordinary_prompts(LocateSpec())
    return locate.cached_reference(
        model, everyone, model.fingerprint, locate.cache_folder(), lambda stage, done, total: None
    )


def guarded(model: DiffusionModel) -> Callable[..., Tensor]:
    """What the guard makes, calibrated on the prompts that it comes with."""
    empty = first_unconditional(model, seeds=(0,), steps=STEPS)
    found = noise_gap_at_start(model, ordinary_prompts(), empty, seeds=(0,), steps=STEPS)
    return partial(generate_guarded, limits=limits_of(found.scores.flatten().tolist()))


def noisy(model: DiffusionModel, cond: Condition, *, seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
    """`generate` from embeddings with noise, which the attacker does not know."""
    rows = [add_embedding_noise(y, scale=NOISE, seed=seed) for y, seed in zip(cond.embeds, seeds, strict=True)]
    return generate(model, cond.with_embeds(torch.stack(rows)), seeds=seeds, steps=steps, guidance=guidance)


def at_hand(name: str) -> bool:
    """Whether a model can be attacked: fine-tuned ones are made by benchmarks/erase.py."""
    return name not in SPECS or (folder(name) / "model").exists()


def forget_retrained(results: Row) -> None:
    """Drop the settings, "MODEL | …", of models that have been trained anew since they were measured."""
    known = results.setdefault("models", {})
    for name in filter(at_hand, SPECS):
        hashed = load(str(folder(name) / "model")).fingerprint
        if known.get(name) != hashed:
            left = {k: v for k, v in results["settings"].items() if not k.startswith(f"{name} | ")}
            results["settings"] = left
            known[name] = hashed
