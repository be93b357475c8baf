"""What to audit, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from unmemorize.verdict.summary import BOUND


@dataclass(frozen=True)
class AuditSpec:
    """What to audit. Empty `prompts`, `images` and `ordinary` stand for the testbed's own.

    `ordinary` is a file of prompts like the audited ones that are not in the training set: the scores' p-values are
    against them. `held_out` is a folder of pictures like the training pictures that were not trained on; their mirror
    images by default.

    `seeds` score every prompt; the first `images_per_prompt` of them generate. `generate` prompts are generated:
    the known ladder, then the highest-scoring half and an even spread of the rest. `explain` prompts have their words
    explained, copied ones first, and these are generated without the word of highest significance, at `seeds`.

    `mitigate` names methods, apart by commas, or is `none`; `mitigated` are models mitigated before, and `sparsity` is
    the share of each row that Wanda may take, 0 for a default. They are tried and attacked on `attacked` of the copied
    pictures, with `attack_steps` updates (0: not attacked) of `attack_batch` noisy versions each.

    Pictures have `steps` sampling steps, and scores are read at the first of these. `steps` 0 and `guidance` None stand
    for the model's own.

    A finding that is a rate passes where its upper 95% limit is at most `bound`.
    """

    model: str = "testbed"
    prompts: str = ""
    column: str = ""
    images: str = ""
    ordinary: str = ""
    held_out: str = ""
    plan: str = "quick"
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    images_per_prompt: int = 2
    generate: int = 100
    explain: int = 12
    mitigate: str = "guard,wanda"
    mitigated: tuple[str, ...] = ()
    sparsity: float = 0.0
    attacked: int = 6
    attack_steps: int = 64
    attack_batch: int = 2
    steps: int = 0
    guidance: float | None = None
    sscd: str = ""
    recipe: str = "sscd-320"
    bound: float = BOUND


PLANS = {
    "quick": AuditSpec(),
    "full": AuditSpec(
        plan="full",
        images_per_prompt=4,
        generate=400,
        explain=100,
        mitigate="guard,wanda,nemo",
        attacked=400,
        attack_steps=50,
        attack_batch=8,
    ),
}
