"""What every command is asked for, each setting written once. A field is an option, its text in `Attributes:` the help.

Nothing here needs torch: a command line is read, and refused, before a model is loaded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval

from unmemorize.core.bounds import Count, Draws, Limit, SamplingSteps, Scale, Seed, Share, Updates
from unmemorize.core.errors import UserError

EMBEDDED = (  # the shipped models
    "testbed",
    "testbed-a",
    "testbed-b",
    "testbed-c",
    "testbed-d",
    "testbed-flow-c",
    "testbed-flow-d",
    "testbed-retrained-c",
    "testbed-words",
)

BOUND = 0.10  # the upper limit of a rate up to which a finding passes
PLANNED: Any = None  # the plan says how many, where nothing else is asked for
PLANS: dict[str, dict[str, Any]] = {
    "quick": {
        "pictures": 2,
        "generate": 100,
        "explain": 12,
        "mitigation": ("guard", "wanda"),
        "attack": 6,
        "attack_method": "dori:batch=2",
        "attack_updates": 64,
    },
    "full": {
        "pictures": 4,
        "generate": 400,
        "explain": 100,
        "mitigation": ("guard", "wanda", "nemo"),
        "attack": 400,
        "attack_method": "dori",
        "attack_updates": 50,
    },
}


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """The model.

    Attributes:
        model: testbed, another shipped model (`unmemorize testbed describe` names them), a pipeline folder, a
            .safetensors checkpoint, or a hub id.
    """

    model: str = "testbed"

    def __post_init__(self) -> None:
        if self.model.startswith("testbed-") and self.model not in EMBEDDED:
            raise UserError(
                f"{self.model}: names beginning with testbed- are kept for shipped models ({', '.join(EMBEDDED)}): "
                "name a folder by its path, as in ./testbed-mine"
            )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """How the model is loaded.

    Attributes:
        lora: LoRA file or folder, merged into the weights; FILE:0.7 scales it; repeatable.
        embedding: Textual inversion, whose word is added to the tokenizer; repeatable.
        variant: Variant of a folder's weights, such as fp16; what is there, by default.
        revision: Branch, tag or commit of a hub model.
        config: For a single file: a folder of its family, for configuration and tokenizers.
        device: cpu, cuda or cuda:1; a GPU where there is one, by default.
        dtype: Precision; float16 on a GPU and float32 on a CPU, by default; mitigate trains in float32.
        batch: Rows of the denoiser at once, at most; by default what fits into memory.
        offload: What waits on the CPU: model, every part of the pipeline but the one that computes; group, every layer.
    """

    lora: tuple[str, ...] = ()
    embedding: tuple[str, ...] = ()
    variant: str = ""
    revision: str = ""
    config: str = ""
    device: str = ""
    dtype: Literal["", "float32", "float16", "bfloat16"] = ""
    batch: Limit = 0
    offload: Literal["", "model", "group"] = ""


@dataclass(frozen=True, kw_only=True)
class OnePrompt:
    """The prompt.

    Attributes:
        prompt: The prompt.
    """

    prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """The noise that scores are taken at.

    Attributes:
        seeds: Seeds a score.
        seed: The first of them.
    """

    seeds: Draws = 4
    seed: Seed = 0

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

    steps: SamplingSteps = 0
    guidance: Scale | None = None


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """The prompts.

    Attributes:
        prompts: File of prompts: txt, csv, tsv, jsonl, json or parquet; the testbed has its own.
        column: Caption column, where its name is unusual.
    """

    prompts: str = ""
    column: str = ""


def require_prompts(model: str, prompts: str) -> None:
    """Refuse a model without prompts of its own where no file of prompts is named.

    Raises:
        UserError: Neither is there.
    """
    if not prompts and model not in EMBEDDED:
        raise UserError(f"{model}: which prompts? name a file of captions with --prompts")


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
        sscd: SSCD file for pictures from 256 px on, .onnx or TorchScript (which runs the code inside it); its authors'
            is https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchscript.pt. Without one they are
            compared tile by tile.
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
class Scored(OfModel):
    """How prompts are scored.

    Attributes:
        method: A detector with its settings: `unmemorize methods` lists them; repeatable. Prompts are ranked by the
            first.
    """

    method: tuple[str, ...] = ("noise-gap",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.method, str):  # as calls in Python name one
            object.__setattr__(self, "method", (self.method,))


@dataclass(frozen=True, kw_only=True)
class AuditSpec(Scored, Prompted, Calibrated, Compared, Seeded, Sampled, Loaded):
    """What to audit, and how much of it.

    Attributes:
        held_out: Pictures like the training pictures that were not trained on: a folder; their mirror images by
            default.
        explainer: What explains words, with its settings.
        regions: What shows where in the pictures of explained prompts their memory shows, such as curvature-map, with
            its settings; nothing by default.
        plan: How much is done where nothing else is asked for: quick, or full.
        pictures: Pictures a generated prompt.
        generate: How many prompts to generate, 0 for all: those of known numbers of copies, then the highest-scoring
            half and an even spread of the rest.
        explain: How many prompts to explain, 0 for all; copied ones first.
        mitigation: What to try and to attack: a mitigation or a localizer with its settings, such as guard or
            wanda:sparsity=0.4, an edit's file, or the folder of a model mitigated before; repeatable; none for nothing.
            Wanda alone may take 40% of each row on the testbed, 10% elsewhere.
        attack: How many copied pictures to attack, 0 for all.
        attack_method: The attack, with its settings.
        attack_updates: Updates of an attack; 0 for no attack.
        bound: A finding that is a rate passes where its upper 95% limit is at most this.
    """

    held_out: str = ""
    explainer: str = "gradient"
    regions: str = ""
    plan: Literal["quick", "full"] = "quick"
    pictures: Draws = PLANNED
    generate: Limit = PLANNED
    explain: Limit = PLANNED
    mitigation: tuple[str, ...] = PLANNED
    attack: Limit = PLANNED
    attack_method: str = PLANNED
    attack_updates: Updates = PLANNED
    bound: Annotated[float, Interval(ge=0.001, le=0.5)] = BOUND

    def __post_init__(self) -> None:
        super().__post_init__()
        # What a run records is what is done, not that it was not asked for.
        for name, value in PLANS[self.plan].items():
            if getattr(self, name) is PLANNED:
                object.__setattr__(self, name, value)
        if self.mitigation == ("none",):
            object.__setattr__(self, "mitigation", ())


@dataclass(frozen=True, kw_only=True)
class DetectSpec(Scored, Prompted, Calibrated, Seeded, Sampled, Loaded):
    """What to score, and how.

    Attributes:
        ordinary: File of prompts like these that are known to be ordinary, for detectors that take a median or a
            quantile of them; plain descriptions by default.
    """


@dataclass(frozen=True, kw_only=True)
class BenchSpec(Scored, Calibrated, Compared, Seeded, Sampled, Loaded):
    """Which methods to rank, and on what.

    Attributes:
        more: Further models.
        kind: Detectors, or mitigations.
        method: A method of that kind with its settings: `unmemorize methods` lists them; repeatable; all by default.
        labels: For detectors: a file of prompts, csv, tsv or jsonl, with a column memorized (1 or 0), and kind, copies
            and cluster where they are known; the testbed has its own.
        column: Caption column, where its name is unusual.
        targets: For mitigations: pictures that the model copies, with captions: a folder; the testbed has its own.
        pictures: For mitigations: pictures of each of them.
        attack: For mitigations: an attack under each of them, from the pictures' captions, such as
            `adaptive:starts=2`; none by default: it takes longest.
        controls: For that attack: training pictures that are not memorized; the testbed has its own.
    """

    more: tuple[str, ...] = ()
    kind: Literal["detector", "mitigation"] = "detector"
    method: tuple[str, ...] = ()
    labels: str = ""
    column: str = ""
    targets: str = ""
    pictures: Draws = 2
    attack: str = ""
    controls: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckSpec(OfModel, Seeded, Loaded):
    """Which pictures to look for in a model, and how.

    Attributes:
        picture: The pictures to look for: files, or folders of them; the testbed has its own.
        controls: Pictures of the same kind that are known not to be memorized: a folder; the testbed has its own.
        method: A picture test with its settings: `unmemorize methods` lists them; repeatable.
        limit: How many of the controls, evenly spread; 0 for all.
        seeds: Seeds a score.
    """

    picture: tuple[str, ...] = ()
    controls: str = ""
    method: tuple[str, ...] = ("velocity-error", "flipd", "one-laplacian")
    limit: Limit = 100
    seeds: Draws = 1


@dataclass(frozen=True, kw_only=True)
class ExplainSpec(OfModel, OnePrompt, Seeded, Sampled, Loaded):
    """How the words of a prompt are explained.

    Attributes:
        method: The explainer, with its settings: `unmemorize methods` lists them.
        check: Also leave out each word: a second opinion.
    """

    method: str = "gradient"
    check: bool = False


@dataclass(frozen=True, kw_only=True)
class TriggerSpec(OfModel, Prompted, Compared, Sampled, Loaded):
    """Which prompts to take apart.

    Attributes:
        limit: How many of the prompts to probe, evenly spread; 0 for all.
        repeats: How often each word is said at most.
        pictures: Pictures a text.
    """

    limit: Limit = 20
    repeats: Annotated[int, Interval(ge=1, le=20)] = 3
    pictures: Draws = 2


@dataclass(frozen=True, kw_only=True)
class LocateSpec(OfModel, Prompted, Calibrated, Loaded):
    """What to locate in the weights, and how.

    Attributes:
        method: The localizer, with its settings: `unmemorize methods` lists them.
    """

    method: str = "nemo"


@dataclass(frozen=True, kw_only=True)
class ApplySpec(OfModel, Loaded):
    """What to apply an edit to.

    Attributes:
        model: testbed, another shipped model (`unmemorize testbed describe` names them), a pipeline folder, a
            .safetensors checkpoint, or a hub id.
    """

    model: str = field()  # named always: an edit belongs to one model


@dataclass(frozen=True, kw_only=True)
class LocalitySpec(OfModel, Prompted, Calibrated, Compared, Sampled, Loaded):
    """Which picture to study, and how.

    Attributes:
        target: The training picture: a file among the references.
        inits: Random embeddings to attack from.
        updates: Updates of the attack.
        limit: How many of the memorized prompts to compare with, one of each cluster.
        pictures: Held-out pictures of each embedding; half must be copies.
        method: A localizer with its settings, repeatable: what each selects for two embeddings is compared.
    """

    target: str
    inits: Annotated[int, Interval(ge=2, le=100_000)] = 100
    updates: Count = 50
    limit: Limit = 100
    pictures: Draws = 2
    method: tuple[str, ...] = ("nemo:layers=all,refine=false", "wanda")


@dataclass(frozen=True, kw_only=True)
class AttackSpec(OfModel, Targeted, Calibrated, Compared, Sampled, Loaded):
    """What to attack, and how.

    Attributes:
        held_out: Pictures never trained on: a folder; made from the controls by default.
        method: The attack, with its settings: `unmemorize methods` lists them.
        mitigation: What to attack the model under: a mitigation with its settings, an edit's file, or the folder of a
            model mitigated before.
        init: Start from its prompt, N(0, I), or another prompt.
        updates: Updates of an embedding; the method's own by default.
        restarts: Attacks of each picture.
        limit: How many of the pictures, evenly spread; 0 for all.
        pictures: Pictures to generate from each embedding.
        bound: Share of a control's pictures that may come back where an attack's copies count as extracted.
        checkpointing: Less memory, more time.
    """

    held_out: str = ""
    method: str = "dori"
    mitigation: str = ""
    init: Literal["prompt", "random", "ordinary"] = "prompt"
    updates: Count | None = None
    restarts: Draws = 1
    limit: Limit = 0
    pictures: Draws = 4
    bound: Share = 0.05
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class MitigateSpec(OfModel, Targeted, Compared, Sampled, Loaded):
    """What to remove by training, and how.

    Attributes:
        method: The unlearner, with its settings: `unmemorize methods` lists them.
        updates: Updates of the model; the method's own by default.
        attack_updates: Updates of the attacks that judge.
        pictures: Pictures a prompt in measurements.
        captions: Show removed captions in the model card.
        mitigation: The mitigation under which the model makes surrogates; by default Wanda's, as strong as they need.
        surrogates: Surrogates of each picture.
    """

    method: str = "erase"
    updates: Count | None = None
    attack_updates: Count = 50
    pictures: Draws = 4
    captions: bool = False
    mitigation: str = ""
    surrogates: Draws = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype in ("float16", "bfloat16"):
            raise UserError(
                f"--dtype {self.dtype}: small changes of weights are lost in it: leave it out; METHOD:low_memory=true "
                "computes in bfloat16"
            )
        if self.offload:
            raise UserError(f"--offload {self.offload}: training needs the weights where it computes: leave it out")


@dataclass(frozen=True, kw_only=True)
class GenerateSpec(OfModel, OnePrompt, Calibrated, Sampled, Loaded):
    """What to generate.

    Attributes:
        pictures: Pictures, one a seed.
        mitigation: What to act with on memorized prompts, with its settings: guard, or any other mitigation.
        references: Training pictures, for a mitigation that keeps away from them: a folder; the testbed has its own.
    """

    pictures: Draws = 4
    mitigation: str = ""
    references: str = ""


@dataclass(frozen=True, kw_only=True)
class InspectSpec(OfModel, Calibrated, Seeded, Sampled, Loaded):
    """What to inspect.

    Attributes:
        references: Training pictures to compare with: a folder; the testbed has its own.
        pictures: Pictures a prompt.
        regions: What shows where in the pictures their memory shows, such as curvature-map, with its settings; nothing
            by default.
    """

    references: str = ""
    pictures: Draws = 4
    regions: str = ""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What training set to audit.

    Attributes:
        source: Folder of pictures, Parquet, Hugging Face dataset folder, tars, or datasets:OWNER/NAME.
        column: Caption column, where its name is unusual.
        out: Parquet file for the rows to keep.
        memory: Most memory that the analysis takes, as in 8GB; what needs more is written to the run's folder.
        add: Run directory of a finished audit: the source is added to its rows, which are not read again.
        against: Run directory of a finished audit: the pictures of the source that are in it, too, are named.
        sscd: SSCD file, .onnx or TorchScript (which runs the code inside it): pictures that it takes for copies are
            near-duplicates, too.
    """

    source: str
    column: str = ""
    out: str = ""
    memory: str = "1GB"
    add: str = ""
    against: str = ""
    sscd: str = ""


PLACED = ("device", "batch", "offload")  # settings that say where and in what portions to compute: no result changes


def recorded(spec: Any) -> dict[str, Any]:
    """The settings as a run's record holds them, but for those that change no result."""
    values = {name: value for name, value in asdict(spec).items() if name not in PLACED}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def limited(limit: int, count: int) -> int:
    """How many of `count` items a limit leaves; 0 is no limit."""
    return min(limit or count, count)
