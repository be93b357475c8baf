"""Every method on every family: what works, and what does not apply, and why.

    python benchmarks/families.py

Writes docs/results/families.md. Each cell is one run of the method on a tiny random pipeline of the family, built in
memory; *works* means that it ran and its result is one, not that it finds anything in random weights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from pipelines import FAMILIES, tiny
from unmemorize.attack.dori import Dori
from unmemorize.attack.prompt import PromptSearch
from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Explainer, Subject
from unmemorize.core.results import Pairs
from unmemorize.core.run import atomic
from unmemorize.core.sample import Sampler, generate
from unmemorize.core.vocabulary import Words
from unmemorize.detect.noise import NoiseGap
from unmemorize.explain.gradient import Gradient
from unmemorize.explain.gradient_input import GradientInput
from unmemorize.localize.nemo import Nemo
from unmemorize.localize.reference import reference
from unmemorize.localize.wanda import Wanda
from unmemorize.mitigate.guard import Guard
from unmemorize.models.load import wrap
from unmemorize.models.pipeline import PipelineModel
from unmemorize.unlearn.deletion import Ordinary
from unmemorize.unlearn.erase import Erase, Erasing
from unmemorize.unlearn.finetune import Finetune, Objective, finetune

PROMPTS = ["a lighthouse at dusk", "an owl on a fence", "two red kites over a field"]
PAGE = Path("docs/results/families.md")


def detector(model: PipelineModel) -> bool:
    """The magnitude at the first sampling step differs between prompts."""
    values = NoiseGap().score(Subject(model, Sampler(4)), model.encode(PROMPTS), seeds=[0]).value
    return bool((values > 0).all()) and len(set(values.tolist())) == len(PROMPTS)


def word_significances(model: PipelineModel) -> bool:
    """Every word has a value."""
    values = _by_word(model, Gradient())
    return len(values) == 5 and all(value > 0 for value in values)


def word_inputs(model: PipelineModel) -> bool:
    """Every word has a value."""
    values = _by_word(model, GradientInput())
    return len(values) == 5 and all(value != 0 for value in values)


def guard(model: PipelineModel) -> bool:
    """With limits at zero every picture is changed, with limits out of reach none."""
    subject = Subject(model, Sampler(2))
    plain = _two_pictures(subject)
    with Guard(threshold=0.0, target=0.0).applied(subject) as guarded:
        changed = _two_pictures(guarded)
    with Guard(threshold=1e9, target=1e9).applied(subject) as guarded:
        same = _two_pictures(guarded)
    return torch.equal(same, plain) and not any(torch.equal(a, b) for a, b in zip(changed, plain, strict=True))


def attack(model: PipelineModel) -> bool:
    """Two updates lower the loss of the same draws' first one, and move the embeddings."""
    cond, latents = model.encode(PROMPTS[:2]), _latents(model, 2)
    found = Dori(updates=2, batch=2).attack(Subject(model), latents, cond, seeds=[0, 1])
    return bool(found.losses.isfinite().all()) and not torch.equal(found.conditions[2].embeds, cond.embeds)


def typed_search(model: PipelineModel) -> bool:
    """A round is made, and what is found are words."""
    start, search = " ".join(model.vocabulary[:2]), PromptSearch(updates=1, batch=2, tried=4)
    prompt, _ = search.search(model, _latents(model, 1), start, seed=0, words=Words(model))
    return len(prompt.split()) == 2


def pruning(model: PipelineModel) -> bool:
    """Wanda chooses some weights and not all."""
    found = Wanda(sparsity=0.1).find(Subject(model), model.encode(PROMPTS[:1]))
    return all(0 < mask.sum() < mask.numel() for mask in found.masks.values())


def neurons(model: PipelineModel) -> bool:
    """NeMo runs on a prompt that it takes for memorized, and chooses channels."""
    usual = reference(model, model.encode(PROMPTS[1:]), seeds=[0, 1])
    search = Nemo(layers="down-mid", seeds=2, threshold=-1.0, start=1.0, minimum=1.0, refine=False, reference=usual)
    found = search.find(Subject(model), model.encode(PROMPTS[:1]))
    return any(mask.any() for mask in found.masks.values())


def erasing(model: PipelineModel) -> bool:
    """One update of erase changes weights."""
    captions, latents = model.encode(PROMPTS), _latents(model, 3)
    objective = Erasing(
        Pairs(latents[:1], captions[:1]),
        latents[1:],
        captions[1:],
        model.encode([""]),
        _weights(model),
        Dori(updates=1, batch=2),
        Erase(every=1, ordinary=2, hostile=2, elsewhere=0.0),
    )
    return _trained(model, objective, Finetune(updates=1, lr=1e-2, ema=0.0))


def low_rank(model: PipelineModel) -> bool:
    """One update of LoRA on ordinary pairs changes weights and leaves no adapter."""
    pairs = Pairs(_latents(model, 3), model.encode(PROMPTS))
    objective = Ordinary(pairs, model.encode([""]), batch=2)
    return _trained(model, objective, Finetune(updates=1, lr=1e-2, lora=2, ema=0.0))


METHODS: dict[str, Callable[[PipelineModel], bool]] = {
    "magnitude": detector,
    "word significance": word_significances,
    "word gradient × input": word_inputs,
    "guard, our own loop": guard,
    "DoRI": attack,
    "typed prompt search": typed_search,
    "Wanda": pruning,
    "NeMo": neurons,
    "erase": erasing,
    "LoRA fine-tuning": low_rank,
}


def _by_word(model: PipelineModel, explainer: Explainer) -> tuple[float, ...]:
    return explainer.explain(Subject(model, Sampler(4)), PROMPTS[1], seeds=[0]).significance


def _two_pictures(subject: Subject) -> torch.Tensor:
    cond = subject.model.encode(PROMPTS[:2])
    return generate(subject.model, cond, seeds=[0, 1], sampler=subject.sampler)


def _weights(model: PipelineModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.denoiser.named_parameters()}


def _trained(model: PipelineModel, objective: Objective, how: Finetune) -> bool:
    before = _weights(model)
    with TemporaryDirectory() as folder:
        finetune(model, objective, how, Path(folder))
    after = _weights(model)
    return after.keys() == before.keys() and any(not torch.equal(after[name], before[name]) for name in before)


def _latents(model: PipelineModel, count: int) -> torch.Tensor:
    pictures = torch.rand(count, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.invert(pictures)


def cell(family: str, method: str) -> str:
    """*works*, or why the method does not apply; anything else is an error."""
    model = wrap(tiny(family), size=(64, 64))
    try:
        assert METHODS[method](model), f"{method} on {family}: the result is none"
    except NotApplicable as error:
        return f"not applicable: {error}"
    return "works"


def page() -> list[str]:
    """The table in Markdown, with each reason once below it."""
    reasons: list[str] = []
    rows = []
    for family in FAMILIES:
        row = [family]
        for method in METHODS:
            found = cell(family, method)
            reason = found.removeprefix("not applicable: ")
            if found != "works" and reason not in reasons:
                reasons.append(reason)
            row.append("works" if found == "works" else f"not applicable ({reasons.index(reason) + 1})")
        rows.append(row)
    lines = [["family", *METHODS], ["---"] * (len(METHODS) + 1), *rows]
    table = [f"| {' | '.join(line)} |" for line in lines]
    return [*table, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]


def main() -> None:
    torch.set_num_threads(1)
    text = "\n".join(page()) + "\n"
    with atomic(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
