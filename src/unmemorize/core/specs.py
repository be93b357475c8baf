"""What every command is asked for, each setting written once. A field is an option, its text in `Attributes:` the help.

Nothing here needs torch: a command line is read, and refused, before a model is loaded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from unmemorize.core.errors import UserError

BOUND = 0.10  # the upper limit of a rate up to which a finding passes
PLANNED: Any = None  # the plan says how many, where nothing else is asked for
PLANS: dict[str, dict[str, Any]] = {
    "quick": {
        "pictures": 2,
        "generate": 100,
        "explain": 12,
        "mitigation": ("guard", "wanda"),
        "attack": 6,
        "attack_updates": 64,
        "attack_batch": 2,
    },
    "full": {
        "pictures": 4,
        "generate": 400,
        "explain": 100,
        "mitigation": ("guard", "wanda", "nemo"),
        "attack": 400,
        "attack_updates": 50,
        "attack_batch": 8,
    },
}
UPDATES = {
    "erase": 960,
    "adversarial-finetune": 200,
    "finetune": 200,
    "siss": 100,
    "neggrad": 50,  # what it ascends has no end: more only does harm
    "deletion": 200,
}


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """The model.

    Attributes:
        model: testbed, testbed-twin, a pipeline folder, or a hub id.
    """

    model: str = "testbed"


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """The noise that scores are taken at.

    Attributes:
        seeds: Seeds a score.
        seed: The first of them.
    """

    seeds: int = 4
    seed: int = 0

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.seeds)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """How pictures are made.

    Attributes:
        steps: Sampling steps; 0: the model's own.
        guidance: Guidance scale; the model's own by default.
    """

    steps: int = 0
    guidance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """The prompts.

    Attributes:
        prompts: File of prompts: txt, csv, tsv, jsonl or parquet; the testbed has its own.
        column: Caption column, where its name is unusual.
    """

    prompts: str = ""
    column: str = ""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The prompts that others are compared with.

    Attributes:
        ordinary: File of prompts like these that are known to be ordinary: not memorized.
    """

    ordinary: str = ""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What a copy is a copy of, and by which criterion.

    Attributes:
        references: Training pictures to compare with: a folder; the testbed has its own.
        sscd: SSCD file, .onnx or TorchScript (which runs the code inside it).
        recipe: SSCD recipe.
    """

    references: str = ""
    sscd: str = ""
    recipe: str = "sscd-320"


@dataclass(frozen=True, kw_only=True)
class Targeted:
    """The pictures to extract or forget, and those beside them.

    Attributes:
        targets: Pictures to extract or to forget, with captions: a folder; the testbed has its own.
        controls: Pictures with captions that are known not to be memorized: controls of an attack, what training keeps.
    """

    targets: str = ""
    controls: str = ""


@dataclass(frozen=True, kw_only=True)
class AuditSpec(OfModel, Prompted, Calibrated, Compared, Seeded, Sampled):
    """What to audit, and how much of it.

    Attributes:
        held_out: Pictures like the training pictures that were not trained on: a folder; their mirror images by
            default.
        plan: How much is done where nothing else is asked for: quick, or full.
        pictures: Pictures a generated prompt.
        generate: How many prompts to generate, 0 for all: the known ladder, then the highest-scoring half and an even
            spread of the rest.
        explain: How many prompts to explain, 0 for all; copied ones first.
        mitigation: What to try and to attack: guard, wanda, nemo, or the folder of a model mitigated before;
            repeatable; none for nothing.
        attack: How many copied pictures to attack, 0 for all.
        attack_updates: Updates of an attack; 0 for no attack.
        bound: A finding that is a rate passes where its upper 95% limit is at most this.
        sparsity: Share of each row that Wanda may take; 0: 40% on the testbed, 10% elsewhere.
        attack_batch: Noisy versions of a picture in an update of an attack.
    """

    held_out: str = ""
    plan: Literal["quick", "full"] = "quick"
    pictures: int = PLANNED
    generate: int = PLANNED
    explain: int = PLANNED
    mitigation: tuple[str, ...] = PLANNED
    attack: int = PLANNED
    attack_updates: int = PLANNED
    bound: float = BOUND
    # Settings of methods.
    sparsity: float = 0.0
    attack_batch: int = PLANNED

    def __post_init__(self) -> None:
        # What a run records is what is done, not that it was not asked for.
        for name, value in PLANS[self.plan].items():
            if getattr(self, name) is PLANNED:
                object.__setattr__(self, name, value)
        if self.mitigation == ("none",):
            object.__setattr__(self, "mitigation", ())


@dataclass(frozen=True, kw_only=True)
class DetectSpec(OfModel, Prompted, Seeded, Sampled):
    """What to score, and how.

    Attributes:
        method: Detector.
        window: Sampling steps to read: the first N, or FIRST:LAST.
    """

    method: str = "noise-gap"
    # Settings of methods.
    window: str = "1"

    def __post_init__(self) -> None:
        first_and_last(self.window, self.steps)


@dataclass(frozen=True, kw_only=True)
class ExplainSpec(OfModel, Seeded, Sampled):
    """How the words of a prompt are explained.

    Attributes:
        method: gradient at the text encoder's output, gradient-input at its input, or leave-one-out.
        check: Also leave out each word: a second opinion.
        window: Sampling steps to average over: the first N, or FIRST:LAST.
        pool: How the tokens of a word are put together.
    """

    method: Literal["gradient", "gradient-input", "leave-one-out"] = "gradient"
    check: bool = False
    # Settings of methods.
    window: str = "1"
    pool: Literal["sum", "max", "mean"] = "sum"

    def __post_init__(self) -> None:
        first_and_last(self.window, self.steps)


@dataclass(frozen=True, kw_only=True)
class TriggerSpec(OfModel, Prompted, Compared, Sampled):
    """Which prompts to take apart.

    Attributes:
        limit: How many of the prompts to probe, evenly spread; 0 for all.
        repeats: How often each word is said at most.
        pictures: Pictures a text.
    """

    limit: int = 20
    repeats: int = 3
    pictures: int = 2


@dataclass(frozen=True, kw_only=True)
class LocateSpec(OfModel, Prompted, Calibrated):
    """What to locate in the weights, and how.

    Attributes:
        method: How to look: nemo or wanda.
        cache: Folder for statistics of ordinary prompts; the user's cache folder by default.
        layers: NeMo: down-mid as the paper, or all cross-attention.
        threshold: NeMo: SSIM that counts as memorized; calibrated by default.
        min_theta: NeMo: smallest z-score of an unusual channel.
        refine: NeMo: free what the channels do without.
        rule: NeMo: hidden by the paper's threshold, or as ordinary prompts are.
        sparsity: Wanda: share of each weight row.
        per_prompt: Wanda: choose prompt by prompt.
    """

    method: Literal["nemo", "wanda"] = "nemo"
    cache: str = ""
    # Settings of methods.
    layers: Literal["down-mid", "all"] = "down-mid"
    threshold: float | None = None
    min_theta: float = 1.0
    refine: bool = True
    rule: Literal["published", "ordinary"] = "published"
    sparsity: float = 0.01
    per_prompt: bool = False


@dataclass(frozen=True, kw_only=True)
class LocalitySpec(OfModel, Prompted, Calibrated, Compared, Sampled):
    """Which picture to study, and how.

    Attributes:
        target: The training picture: a file among the references.
        inits: Random embeddings to attack from.
        updates: Updates of the attack.
        limit: How many of the memorized prompts to compare with, one of each cluster.
        pictures: Held-out pictures of each embedding; half must be copies.
        batch: Rows a denoiser evaluation; changes no result.
        layers: NeMo: all cross-attention, or down-mid as the paper.
        refine: NeMo: free what the channels do without; slow.
        sparsity: Wanda: share of each weight row.
    """

    target: str
    inits: int = 100
    updates: int = 50
    limit: int = 100
    pictures: int = 2
    batch: int = 64
    # Settings of methods.
    layers: Literal["down-mid", "all"] = "all"
    refine: bool = False
    sparsity: float = 0.01


@dataclass(frozen=True, kw_only=True)
class AttackSpec(OfModel, Targeted, Calibrated, Compared, Sampled):
    """What to attack, and how.

    Attributes:
        held_out: Pictures never trained on: a folder; made from the controls by default.
        method: dori, high-noise, from-noise or adaptive.
        edit: An edit to attack the model under: NAME.safetensors.
        init: Start from its prompt, N(0, I), or another prompt.
        updates: Updates of an embedding; the method's own by default.
        restarts: Attacks of each picture.
        limit: How many of the pictures, evenly spread; 0 for all.
        pictures: Pictures to generate from each embedding.
        bound: Share of a control's pictures that may come back where an attack's copies count as extracted.
        dtype: float32, float16 or bfloat16; by the device where empty.
        checkpointing: Less memory, more time.
        lr: Learning rate; the method's own by default.
        batch: Noisy versions of a picture in an update; the method's own by default.
    """

    held_out: str = ""
    method: str = "dori"
    edit: str = ""
    init: Literal["prompt", "random", "ordinary"] = "prompt"
    updates: int | None = None
    restarts: int = 1
    limit: int = 0
    pictures: int = 4
    bound: float = 0.05
    dtype: str = ""
    checkpointing: bool = False
    # Settings of methods.
    lr: float | None = None
    batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class MitigateSpec(OfModel, Targeted, Compared, Sampled):
    """What to remove by training, and how.

    Attributes:
        method: How to remove.
        updates: Updates of the model; 0: the default of the method.
        attack_updates: Updates of the attacks that judge.
        pictures: Pictures a prompt in measurements.
        seed: Seed of training.
        check_every: Updates between two checks of what an attack finds; 0 for none.
        low_memory: bf16 and gradient checkpointing.
        captions: Show removed captions in the model card.
        edit: Edit of the model that makes surrogates; Wanda's by default.
        surrogates: Surrogates of each picture.
        lr: Learning rate; 0: 1e-5, for the testbed 2e-4.
        batch: Rows of either kind in an update.
        inner: Attack updates before an update of the model.
        lora: Rank of LoRA adapters; 0 trains all weights.
    """

    method: Literal["erase", "adversarial-finetune", "finetune", "siss", "neggrad", "deletion"] = "erase"
    updates: int = 0
    attack_updates: int = 50
    pictures: int = 4
    seed: int = 0
    check_every: int = 100
    low_memory: bool = False
    captions: bool = False
    # Settings of methods.
    edit: str = ""
    surrogates: int = 10
    lr: float = 0.0
    batch: int = 8
    inner: int = 50
    lora: int = 0

    def __post_init__(self) -> None:
        # What a run records is how many it made, not that it was not asked.
        object.__setattr__(self, "updates", self.updates or UPDATES[self.method])


@dataclass(frozen=True, kw_only=True)
class GenerateSpec(OfModel, Calibrated, Sampled):
    """What to generate.

    Attributes:
        prompt: The prompt.
        pictures: Pictures, one a seed.
        guard: Act on memorized prompts: wen.
        threshold: Magnitude above which the guard acts; calibrated on ordinary prompts by default.
        target: Magnitude it brings a picture under.
    """

    prompt: str
    pictures: int = 4
    # Settings of methods.
    guard: Literal["", "wen"] = ""
    threshold: float | None = None
    target: float | None = None


@dataclass(frozen=True, kw_only=True)
class InspectSpec(OfModel, Calibrated, Seeded, Sampled):
    """What to inspect.

    Attributes:
        references: Training pictures to compare with: a folder; the testbed has its own.
        pictures: Pictures a prompt.
    """

    references: str = ""
    pictures: int = 4


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What training set to audit.

    Attributes:
        source: Folder of pictures, Parquet, Hugging Face dataset folder, or tars.
        column: Caption column, where its name is unusual.
        out: Parquet file for the rows to keep.
    """

    source: str
    column: str = ""
    out: str = ""


def recorded(spec: Any, *left_out: str) -> dict[str, Any]:
    """The settings as a run's record holds them, but for those that change no result."""
    values = {name: value for name, value in asdict(spec).items() if name not in left_out}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def first_and_last(window: str, steps: int = 0) -> tuple[int, int]:
    """The sampling steps to read, as (first, last); `steps` is how many there are, 0 where that is not known.

    Raises:
        UserError: It is neither a number nor FIRST:LAST, or lies outside the sampling steps.
    """
    start, colon, end = window.partition(":")
    try:
        first, last = (int(start or 0), int(end)) if colon else (0, int(window))
    except ValueError:
        raise UserError(f"--window {window}: write a number of steps, or FIRST:LAST") from None
    if not 0 <= first < last or last > (steps or last):
        raise UserError(f"--window {window} of {steps or 'all'} steps: name a window inside the sampling steps")
    return first, last


def limited(limit: int, count: int) -> int:
    """How many of `count` items a limit leaves; 0 is no limit."""
    return min(limit or count, count)
