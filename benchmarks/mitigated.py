"""The testbed under each of its mitigations, by name: what is changed in its weights or in sampling.

Fine-tuned models are made by `python benchmarks mitigations`; without their folders what attacks them is left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from common import TESTBED, memorized_prompts
from harness import Row

from unmemorize.core.methods import Localizer, Mitigation, Subject
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.localize.nemo import Nemo
from unmemorize.localize.reference import cache_folder, cached_reference
from unmemorize.localize.wanda import Wanda
from unmemorize.mitigate.edit import Edit
from unmemorize.mitigate.guard import Guard
from unmemorize.mitigate.perturb import EmbeddingNoise
from unmemorize.models.load import load
from unmemorize.stages.mitigations import tuned_model

PRUNED = {"Wanda 1%": Wanda(sparsity=0.01), "Wanda 10%": Wanda(sparsity=0.1), "Wanda 40%": Wanda(sparsity=0.4)}
NEMO = {
    "NeMo, θ ≥ 0.25": Nemo(layers="all", minimum=0.25, refine=False),  # each prompt's own channels
    "NeMo, refined": Nemo(layers="all"),  # all prompts' together
}
SAMPLED = {
    "guard": Guard(),
    "embedding noise": EmbeddingNoise(scale=2.0),  # less hides nothing on the testbed: see cases/mitigation.py
}
UNLEARNERS = {
    "erase": "erase:check_every=0",
    "erase, seed 1": "erase:check_every=0,seed=1",
    "erase, seed 2": "erase:check_every=0,seed=2",
    # Half as many evaluations as erase.
    "adversarial fine-tuning": "adversarial-finetune:check_every=0,updates=48",
    "adversarial fine-tuning, LoRA": "adversarial-finetune:check_every=0,updates=24,lora=8,lr=0.001",
    "fine-tuning, no adversary": "finetune",
    "SISS": "siss",
    "NegGrad": "neggrad",
    "naive deletion": "deletion",
}
UNTRAINED = ("none", *SAMPLED, *PRUNED, *NEMO)
NAMES = ("none", *SAMPLED, *reversed(PRUNED), *NEMO, *UNLEARNERS)


@dataclass(frozen=True)
class Mitigated:
    """A mitigation for all, called "all", or one for every memorized prompt; and what it took to make."""

    mitigations: dict[str, Mitigation]
    evaluations: int
    seconds: float

    @property
    def is_one(self) -> bool:
        """Whether it is the same for all prompts."""
        return len(self.mitigations) == 1

    def of(self, caption: str | None, place: int) -> Mitigation:
        """The caption's own, or, if it has none, one of the others in turn."""
        return self.mitigations.get(caption or "") or list(self.mitigations.values())[place % len(self.mitigations)]


def mitigated(subject: Subject, name: str) -> Mitigated:
    """The testbed under one of NAMES; what has to be located is that of the memorized prompts."""
    localizer: Localizer | None = PRUNED.get(name) or NEMO.get(name)
    if isinstance(localizer, Nemo):
        # What is usual is found once, whatever is pruned then: no cost of one.
        ordinary = subject.model.encode(TESTBED.ordinary())
        localizer = replace(localizer, reference=cached_reference(subject.model, ordinary, cache_folder()))
    since = time.perf_counter()
    with subject.model.counted() as cost:
        mitigations = located(subject, localizer) if localizer else {"all": made(subject, name)}
    return Mitigated(mitigations, cost.forward, time.perf_counter() - since)


def located(subject: Subject, localizer: Localizer) -> dict[str, Mitigation]:
    """What a localizer finds, set to zero for all prompts, or each prompt's own for itself."""
    found, hashed = localizer.find(subject, subject.model.encode(memorized_prompts())), subject.model.fingerprint
    if localizer == NEMO["NeMo, θ ≥ 0.25"]:
        return {prompt.prompt: Edit.of(found, hashed, prompt=prompt) for prompt in found.per_prompt}
    return {"all": Edit.of(found, hashed)}


def made(subject: Subject, name: str) -> Mitigation:
    """One that looks for nothing: a model that was tuned, a change of sampling, or none at all."""
    if name in UNLEARNERS:
        return tuned_model(str(folder(name) / "model"), subject.model)
    if name in SAMPLED:
        return SAMPLED[name].fitted(subject, ordinary=subject.model.encode(ordinary_prompts()))
    return Edit({}, {}, subject.model.fingerprint)


def folder(name: str) -> Path:
    """Where the run and the model of an unlearner are."""
    return Path("runs/erase") / name.replace(",", "").replace(" ", "-")


def at_hand(name: str) -> bool:
    """Whether a model can be attacked."""
    return name not in UNLEARNERS or (folder(name) / "model").exists()


def forget_retrained(results: Row) -> None:
    """Drop the rows, "MODEL | …", of models that have been trained anew since they were measured."""
    known = results.setdefault("models", {})
    for name in filter(at_hand, UNLEARNERS):
        hashed = load(str(folder(name) / "model")).fingerprint
        if known.get(name) != hashed:
            results["settings"] = {k: v for k, v in results["settings"].items() if not k.startswith(f"{name} | ")}
            known[name] = hashed
