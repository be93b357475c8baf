"""Every method on every family: what works, and what does not apply, and why.

Each cell is one run of the method, with few updates, on a tiny random pipeline of the family, built in memory; *works*
means that it ran and gave a finite result, not that it found anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from harness import Options, Study, table

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from pipelines import FAMILIES, tiny
from unmemorize.core.errors import NotApplicable
from unmemorize.core.methods import Kind, Subject, Training, methods, parse
from unmemorize.core.results import Pairs, Regions, Surrogates
from unmemorize.core.sample import Sampler, generate
from unmemorize.models.load import wrap
from unmemorize.unlearn import erase

PROMPTS = ["a green bicycle", "an owl on a fence"]
ORDINARY = [f"a field and {i} boats" for i in range(4)]
QUICK = {  # settings under which a method takes little time
    "dsm": "dsm:step=0",
    "cascade": "cascade:then=max-z",  # of two steps the default takes more
    "flipd": "flipd:probes=1",
    "one-laplacian": "one-laplacian:probes=1",
    "velocity-error": "velocity-error:probes=1",
    "few-tokens": "few-tokens:tokens=1,updates=1",
    "nemo": "nemo:threshold=-1,start=1,minimum=1,seeds=2,refine=false",
    "nemo-joint": "nemo-joint:threshold=-1,start=1,minimum=1,seeds=2,refine=false",
    "wanda": "wanda:sparsity=0.1",
    "adversarial-finetune": "adversarial-finetune:updates=1,batch=2,attack=dori:updates=1",
    "erase": "erase:updates=1,attack=high-noise:updates=1,ordinary=2,hostile=2",
    "guard": "guard:threshold=0,target=0,iterations=1",
    "curvature-map": "curvature-map:probes=1",
    "static-transition": "static-transition:until=0.5",  # of two steps both may lie below the default
    "opposite-guidance": "opposite-guidance:until=0.5",
    "prompt-reanchoring": "prompt-reanchoring:threshold=0",
    "dissimilarity-guidance": "dissimilarity-guidance:near=1",
    "per-sample-noise": "per-sample-noise:target=0,iterations=1",
    "sail": "sail:target=0,iterations=1,candidates=1",
    "adaptive": "adaptive:updates=1,sampling=1",
    "prompt-search": "prompt-search:updates=1,tried=2",
}
LORA = "deletion:updates=1,batch=2,lora=2"  # LoRA is a setting of every unlearner: one of them stands for it


def detector(method: Any, subject: Subject) -> torch.Tensor:
    return method.score(subject, subject.model.encode(PROMPTS), seeds=[0, 1]).by_seed


def picture_test(method: Any, subject: Subject) -> torch.Tensor:
    pictures = Pairs(latents_of(subject, 2), subject.model.encode(PROMPTS))
    return method.score(subject, pictures, seeds=[0]).by_seed


def explainer(method: Any, subject: Subject) -> torch.Tensor:
    found = method.explain(subject, PROMPTS[1], seeds=[0])
    if isinstance(found, Regions):
        assert (found.maps > 0).any()
        return found.maps
    assert found.words == ("an", "owl", "on", "a", "fence")
    values = torch.tensor(found.significance)
    assert (values != 0).all()
    return values


def localizer(method: Any, subject: Subject) -> torch.Tensor:
    encode = subject.model.encode
    found = method.find(subject, encode(PROMPTS[:1]), ordinary=encode(ORDINARY))
    assert found.selected > 0
    return torch.ones(1)


def unlearner(method: Any, subject: Subject) -> torch.Tensor:
    model, latents = subject.model, latents_of(subject, 4)
    before = {name: value.detach().clone() for name, value in model.denoiser.named_parameters()}
    pairs = Pairs(latents, model.encode(ORDINARY))
    surrogates = Surrogates(latents[2:3], torch.zeros(1, dtype=torch.long))
    with TemporaryDirectory() as folder:
        training = Training(Path(folder), surrogates=lambda: surrogates)
        trained = method.train(subject, part(pairs, slice(0, 1)), part(pairs, slice(1, None)), training)
    after = dict(model.denoiser.named_parameters())
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    return torch.cat(list(trained.losses.values()))


def mitigation(method: Any, subject: Subject) -> torch.Tensor:
    cond = subject.model.encode(PROMPTS)
    pictures, ordinary = latents_of(subject, 4), subject.model.encode(ORDINARY)
    fitted = method.fitted(subject, prompts=cond, ordinary=ordinary, pictures=pictures, seeds=[0])
    plain = generate(subject.model, cond, seeds=[0, 1], sampler=subject.sampler)
    with fitted.applied(subject) as changed:
        pictures = generate(changed.model, cond, seeds=[0, 1], sampler=changed.sampler)
    assert not torch.equal(pictures, plain)
    return pictures


def attack(method: Any, subject: Subject) -> torch.Tensor:
    words = " ".join(subject.model.vocabulary[:2]) if "tokens" in method.needs else PROMPTS[0]
    start = subject.model.encode([words] * 2)
    method = method.prepared(prompts=start, ordinary=start)
    return method.attack(subject, latents_of(subject, 2), start, seeds=[0, 1]).last.embeds


RUNS: dict[Kind, Callable[[Any, Subject], torch.Tensor]] = {
    "detector": detector,
    "picture-test": picture_test,
    "explainer": explainer,
    "localizer": localizer,
    "unlearner": unlearner,
    "mitigation": mitigation,
    "attack": attack,
}


def part(pairs: Pairs, rows: slice) -> Pairs:
    return Pairs(pairs.latents[rows], pairs.captions[rows])


def latents_of(subject: Subject, count: int) -> torch.Tensor:
    pictures = torch.rand(count, 3, *subject.model.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return subject.model.invert(pictures)


def rows() -> dict[str, tuple[Kind, str]]:
    """This package's methods by name, each with the kind and the string of a quick one."""
    found: dict[str, tuple[Kind, str]] = {}
    for kind in RUNS:
        for name, cls in methods(kind).items():
            if not cls.__module__.startswith("unmemorize.") or name in ("edit", "located"):
                continue  # the last two stand for localizers
            updates = f"{name}:updates=1" if kind in ("unlearner", "attack") else name
            found[name] = (kind, QUICK.get(name, updates))
    return found | {"LoRA, of any unlearner": ("unlearner", LORA)}


def cell(family: str, kind: Kind, spelled: str) -> str | None:
    """None where the method works, or why it does not apply; anything else is an error."""
    try:
        subject = Subject(wrap(tiny(family), size=(64, 64)), Sampler(2))
        assert RUNS[kind](parse(kind, spelled), subject).isfinite().all(), f"{spelled} on {family}: not finite"
    except NotApplicable as error:
        return str(error)
    return None


def measure(options: Options) -> None:
    """Nothing is kept: the page says all that is found."""
    torch.set_num_threads(1)
    erase.WORD_PAIRS = 4  # captions that are encoded for it alone; thousands take minutes


def page(numbers: None) -> Iterator[str]:
    """The table, with each reason once below it."""
    reasons: list[str] = []
    lines = []
    for name, (kind, spelled) in rows().items():
        line = [name]
        for family in FAMILIES:
            reason = cell(family, kind, spelled)
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            line.append("works" if reason is None else f"not applicable ({reasons.index(reason) + 1})")
        lines.append(line)
    yield from table(["method", *FAMILIES], lines)
    yield from ("", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)))


STUDY = Study(title="", about="", page=page, measure=measure)
