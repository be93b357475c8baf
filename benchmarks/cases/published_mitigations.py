"""Others' mitigations at inference, a first look: copies left and alignment, with the settings of their papers.

Half of the prompts that were planted a hundred times or more, one seed. Nothing is chosen, and nothing is ranked: for
that they are too few.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

import numpy as np
from common import SAMPLER, are_copies, halves, match_any, match_own, often, planted, rate_of
from harness import Cases, Options, Row, Study, show, table

from unmemorize.core.methods import Mitigation, Subject, parse
from unmemorize.core.sample import generate
from unmemorize.mitigate.edit import Edit
from unmemorize.models.load import load
from unmemorize.testbed.alignment import Alignment

SEED = 300
# The papers' settings; the fewest updates that a first look can afford of the one that may take a thousand.
METHODS = (
    "static-transition",
    "opposite-guidance",
    "dynamic-transition",
    "batch-wise-noise",
    "attention-reweighting",
    "attractive-repulsive",
    "attractive-repulsive:threshold=0.01,repulsion=0.0",
    "padding-masked",
    "padding-replaced",
    "per-sample-noise:iterations=100",
    "sail",
)


@cache
def testbed() -> tuple[Subject, Alignment]:
    """The shipped model, drawn from as the others are, and what alignment is measured by."""
    model = load("testbed")
    return Subject(model, SAMPLER), Alignment(model)


def left(spelled: str, rows: Row) -> Row:
    """Copy rate and alignment under one mitigation, and denoiser evaluations a picture."""
    subject, align = testbed()
    prompts = halves(planted(often))[0]
    texts, seeds = [p.text for p in prompts], [SEED] * len(prompts)
    mitigation: Mitigation = parse("mitigation", spelled) if spelled != "none" else Edit({}, {}, "")
    with mitigation.applied(subject) as changed, subject.model.counted() as cost:
        made = generate(subject.model, subject.model.encode(texts), seeds=seeds, sampler=changed.sampler)
    return {
        "acts": mitigation.acts if spelled != "none" else "",
        "copy_rate": rate_of(are_copies(match_own(made, texts)), 1, [p.cluster for p in prompts]),
        "any_picture": float(np.mean(are_copies(match_any(made)))),
        "alignment": align(made, texts).mean().item(),
        "evaluations": cost.forward / len(texts),
        "with_gradient": cost.backward / len(texts),
        "pictures": len(texts),
    }


def measure(options: Options) -> Cases:
    """The model as it came, and under each mitigation."""
    return Cases({"seed": SEED}, {name: partial(left, name) for name in ("none", *METHODS)})


def page(numbers: Row) -> Iterator[str]:
    """One row a method."""
    rows = []
    for name, row in numbers["settings"].items():
        cells = [row["acts"], show(row["copy_rate"]), f"{row['any_picture']:.2f}", f"{row['alignment']:.3f}"]
        rows.append([f"`{name}`", *cells, f"{row['evaluations']:.0f}", f"{row['with_gradient']:.0f}"])
    head = "mitigation | acts on | copy rate | of any picture | alignment | evaluations a picture | with gradient"
    yield from table(head, rows)


STUDY = Study(
    title="Others' mitigations at inference: a first look",
    about="Half of the prompts planted a hundred times or more, nine pictures at one seed: the intervals say how "
    "little that is, and no order follows from it. Settings are the papers', which are for Stable Diffusion 1.4, with "
    "at most a hundred updates of per-sample noise. Copies, alignment and evaluations are those of the table of "
    "mitigations at inference above. None of these was attacked.",
    page=page,
    measure=measure,
)
