"""Attack one picture from many starts, and measure how alike the embeddings are that bring it back."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from unmemorize.attack.dori import Dori
from unmemorize.core.choose import evenly
from unmemorize.core.errors import UserError
from unmemorize.core.files import real_path
from unmemorize.core.methods import Localizer, Subject, parse
from unmemorize.core.model import Condition, joined
from unmemorize.core.results import Match
from unmemorize.core.run import Progress, Run, RunRecord, atomic, quiet, write_json
from unmemorize.core.sample import generate, normal
from unmemorize.core.shards import Row
from unmemorize.core.specs import LocalitySpec, limited
from unmemorize.core.tensors import read_tensors
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import Prompt
from unmemorize.localize.locality import Floats, Layer, Selected, distances, mean_over, measure, selections
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import DUPLICATE, References
from unmemorize.stages.inputs import Inputs, prompt_source, text_source
from unmemorize.stages.stage import Work

ADVERSARIAL, INITS, MEMORIZED, ORDINARY = "adversarial", "inits", "memorized", "ordinary"
FIRST_INIT, FIRST_HELD_OUT = 1_000_000, 1000  # seeds that neither the attack nor NeMo and Wanda draw from
SHARD = 8  # embeddings: a killed study loses no more
ROWS = 16  # pictures sampled together


@dataclass(frozen=True)
class _Study:
    """What every part of a run needs."""

    inputs: Inputs
    localizers: Mapping[str, Localizer]
    run: Path
    progress: Progress

    @property
    def spec(self) -> LocalitySpec:
        spec: LocalitySpec = self.inputs.spec
        return spec

    def rows(self, stage: str, items: Sequence[Any], do: Callable[[Sequence[Any]], list[Row]]) -> pa.Table:
        """The rows of all items, some at a time and each once, also in STAGE.parquet."""
        return pq.read_table(Work(stage, f"{stage}.parquet", items, do, size=SHARD).run(self.run, self.progress))

    def matches(self, cond: Condition) -> list[list[Match]]:
        """What the pictures of each embedding at the held-out seeds are nearest to."""
        model, sampler = self.inputs.model, self.inputs.subject.sampler
        seeds = list(range(FIRST_HELD_OUT, FIRST_HELD_OUT + self.spec.pictures))
        every = seeds * len(cond)
        pictures = generate(model, cond.repeat(len(seeds)), seeds=every, sampler=sampler, batch=ROWS)
        matches = self.inputs.check.match(pictures)
        return [matches[i : i + len(seeds)] for i in range(0, len(matches), len(seeds))]


def locality(spec: LocalitySpec, run: Path, progress: Progress = quiet) -> Row:
    """Run or continue both tests of locality in `run`; returns what it leaves in `locality.json`.

    Raises:
        UserError: The model, a method, the picture or the prompts cannot be used, `run` holds another run, or fewer
            than two embeddings or two prompts give copies, or there is one ordinary prompt.
        NotApplicable: The model lacks the layers that a method looks at.
    """
    localizers = localizers_of(spec)
    inputs = Inputs.of(spec)
    study = _Study(inputs, localizers, run, progress)
    prompts, ordinary = memorized_of(inputs), inputs.bundle.ordinary()
    if len(ordinary) < 2:
        raise UserError(f"{spec.ordinary}: one prompt, and they are compared with each other: name two or more")
    target = _target(spec, inputs.bundle, inputs.check.references)
    if not (run / "attack.parquet").exists():
        for localizer in localizers.values():  # a model may lack what it looks at: better now than after the attack
            selections(Subject(inputs.model), inputs.model.encode([""]), localizer, inputs.model.encode(ordinary))
    with Run.open(run, _record(study, prompts, ordinary)):
        attacked, groups = _groups(study, target, prompts, ordinary)
        chosen, layers = _selections(study, groups, ordinary)
        copies = [row["copies"] for row in attacked]
        spread = {group: distances(cond.embeds) for group, cond in groups.items()}
        result = {
            "image": target,
            "inits": spec.inits,
            "copy_rate": dataclasses.asdict(rate_interval(copies, [spec.pictures] * len(copies))),
            "mirrored": sum(row["mirrored"] for row in attacked) / max(sum(copies), 1),
            "embeddings": {group: len(cond) for group, cond in groups.items()},
            "moved": dataclasses.asdict(mean_over(_moved(groups))),
            **dataclasses.asdict(measure(spread, chosen, layers)),
            "steps": spec.updates,
            "evaluations": sum(row["evaluations"] for row in attacked),
            "criterion_errors": inputs.check.criterion.said_of_errors,
        }
        write_json(run / "locality.json", result)
    return result


def localizers_of(spec: LocalitySpec) -> dict[str, Localizer]:
    """The methods that are compared, by name.

    Raises:
        UserError: There is none, one is not known, or one is named twice.
    """
    localizers: dict[str, Localizer] = {}
    for text in spec.method:
        localizer: Localizer = parse("localizer", text)
        if localizer.name in localizers:
            raise UserError(f"--method {text}: {localizer.name} is named twice: name it once in a run")
        localizers[localizer.name] = localizer
    if not localizers:
        raise UserError("locality compares what methods select: name one with --method")
    return localizers


def memorized_of(inputs: Inputs) -> list[Prompt]:
    """The prompts in the file, or the embedded model's memorable ones; one of each cluster, evenly spread."""
    spec = inputs.spec
    given = [p for p in inputs.prompts if spec.prompts or p.memorable]
    unrelated = list({p.cluster or p.id: p for p in reversed(given)}.values())[::-1]
    return [unrelated[i] for i in evenly(len(unrelated), limited(spec.limit, len(unrelated)))]


def _target(spec: LocalitySpec, bundle: Bundle, references: References) -> str:
    """The picture's name among the training pictures.

    Raises:
        UserError: It is not one of them.
    """
    folder = bundle.place("references")
    path = real_path(Path(spec.target))
    inside = path.is_file() and path.is_relative_to(real_path(folder))
    name = str(path.relative_to(real_path(folder))) if inside else spec.target
    if name not in references.names:
        raise UserError(f"{spec.target}: not one of the {len(references.names)} pictures in {folder}: name one of them")
    return name


def _record(study: _Study, prompts: Sequence[Prompt], ordinary: Sequence[str]) -> RunRecord:
    spec, check = study.spec, study.inputs.check
    data = {
        "prompts": prompt_source(spec.prompts or spec.model, prompts),
        "ordinary": text_source(spec.ordinary or "built in", ordinary),
        "references": check.source,
    }
    return study.inputs.record(data, check.criterion)


def _groups(
    study: _Study, target: str, prompts: Sequence[Prompt], ordinary: Sequence[str]
) -> tuple[list[Row], dict[str, Condition]]:
    """Every attack's row, and the embeddings to compare, which `embeddings.safetensors` holds by the same names."""
    spec, model = study.spec, study.inputs.model
    attacked = _attack(study, target)
    copying = [i for i, row in enumerate(attacked) if 2 * row["copies"] >= spec.pictures]
    if len(copying) < 2:
        raise UserError(
            f"{spec.target}: {len(copying)} of {spec.inits} inits lead to copies after {spec.updates} updates, and "
            "pairs are compared: name more --updates or --inits in another --run, or another picture"
        )
    texts = _copying(study, prompts)
    if len(texts) < 2:
        raise UserError(
            f"{len(texts)} of {len(prompts)} prompts copy a training picture, each another: name a file of memorized "
            "captions with --prompts"
        )
    folder = study.run / "shards" / "attack"
    remedy = f"delete {folder} and start the same command again"
    parts = [read_tensors(path, remedy) for path in sorted(folder.glob("*.safetensors"))]
    groups = {name: Condition(torch.cat([part[name] for part in parts])[copying]) for name in (ADVERSARIAL, INITS)}
    chosen = [ordinary[i] for i in np.linspace(0, len(ordinary) - 1, min(spec.inits, len(ordinary))).astype(int)]
    groups |= {MEMORIZED: model.encode(texts), ORDINARY: model.encode(chosen)}
    with atomic(study.run / "embeddings.safetensors") as temporary:
        save_file({name: cond.embeds.cpu().contiguous() for name, cond in groups.items()}, temporary)
    return attacked, {name: cond.to(model.device) for name, cond in groups.items()}


def _attack(study: _Study, target: str) -> list[Row]:
    """Attack from random starts; the embeddings are left beside the shards."""
    spec, model, references = study.spec, study.inputs.model, study.inputs.check.references
    own = _same_picture(references, target)
    with torch.no_grad():
        latent = model.invert(references.named([target]).images)
    like = model.encode([""]).embeds

    def do(shard: Sequence[int]) -> list[Row]:
        inits = Condition(normal(like[0], [FIRST_INIT + i for i in shard]))
        latents = latent.expand(len(shard), -1, -1, -1)
        attack = Dori(updates=spec.updates).attack(Subject(model), latents, inits, seeds=shard)
        with atomic(study.run / "shards" / "attack" / f"{shard[0]:05d}.safetensors") as temporary:
            pair = {ADVERSARIAL: attack.last, INITS: inits}
            save_file({name: cond.embeds.cpu().contiguous() for name, cond in pair.items()}, temporary)
        each = attack.evaluations // len(shard)
        rows = []
        for i, matches, losses in zip(shard, study.matches(attack.last), attack.losses.T.tolist(), strict=True):
            copies = [match for match in matches if match.copied and match.nearest in own]
            row = {"init": i, "copies": len(copies), "mirrored": sum(copy.mirrored for copy in copies)}
            rows.append(row | {"loss": losses[-1], "evaluations": each})
        return rows

    rows: list[Row] = study.rows("attack", range(spec.inits), do).to_pylist()
    return rows


def _same_picture(references: References, name: str) -> list[str]:
    """The picture and its duplicates in the folder, in the folder's order."""
    picture = references.named([name]).images
    near = DUPLICATE * picture[0].flatten(1).var(1).mean().sqrt()
    names = []
    for other, image in zip(references.names, references.batches(1), strict=True):
        if other == name or (image - picture).square().mean().sqrt() < near:
            names.append(other)
    return names


def _copying(study: _Study, prompts: Sequence[Prompt]) -> list[str]:
    """Prompts that copy one picture at half of the held-out seeds, one for each picture."""

    def do(shard: Sequence[Prompt]) -> list[Row]:
        rows = []
        cond = study.inputs.model.encode([prompt.text for prompt in shard])
        for prompt, matches in zip(shard, study.matches(cond), strict=True):
            copied = Counter(match.nearest for match in matches if match.copied)
            picture, copies = copied.most_common(1)[0] if copied else ("", 0)
            mirrored = sum(match.mirrored for match in matches if match.copied and match.nearest == picture)
            rows.append({"prompt": prompt.text, "copies": copies, "mirrored": mirrored, "picture": picture})
        return rows

    table: list[Row] = study.rows("prompts", prompts, do).to_pylist()
    by_picture: dict[str, str] = {}
    for row in table:
        if 2 * row["copies"] >= study.spec.pictures:
            picture = _same_picture(study.inputs.check.references, row["picture"])[0]
            by_picture.setdefault(picture, row["prompt"])
    return list(by_picture.values())


def _selections(
    study: _Study, groups: Mapping[str, Condition], ordinary: Sequence[str]
) -> tuple[dict[str, list[Selected]], dict[Layer, int]]:
    """What each method selects for each embedding of each group, and the sizes of the layers that it looks at."""
    subject, contrast = Subject(study.inputs.model), study.inputs.model.encode(ordinary)
    items: list[tuple[str, int]] = []
    for group, embeddings in groups.items():
        items += [(group, i) for i in range(len(embeddings))]

    def do(shard: Sequence[tuple[str, int]]) -> list[Row]:
        cond = joined([groups[group][[i]] for group, i in shard])
        rows = []
        for name, localizer in study.localizers.items():
            for (group, i), masks in zip(shard, selections(subject, cond, localizer, contrast), strict=True):
                head = {"group": group, "embedding": i, "method": name}
                for layer, mask in masks.items():
                    units = mask.flatten().nonzero()[:, 0].int().numpy()
                    rows.append(head | {"layer": layer, "units": units, "size": mask.numel()})
                if not masks:
                    rows.append(head | {"layer": "", "units": np.zeros(0, np.int32), "size": 0})
        return rows

    return _read_selections(study.rows("selections", items, do), groups, list(study.localizers))


def _read_selections(
    table: pa.Table, groups: Mapping[str, Condition], methods: Sequence[str]
) -> tuple[dict[str, list[Selected]], dict[Layer, int]]:
    """The rows that `_selections` wrote: the units of each embedding by layer, and the sizes of the layers."""
    chosen: dict[str, list[dict[Layer, Any]]] = {}
    for group, embeddings in groups.items():
        chosen[group] = [{} for _ in range(len(embeddings))]
    layers: dict[Layer, int] = {}
    columns = (table[name].to_pylist() for name in ("group", "embedding", "method", "layer", "size"))
    for group, i, method, layer, size, units in zip(*columns, table["units"], strict=True):
        if layer:
            chosen[group][i][method, layer] = units.values.to_numpy()
            layers[method, layer] = size
    sizes = dict(sorted(layers.items(), key=lambda entry: methods.index(entry[0][0])))  # stable: layers stay in order
    return {group: list(members) for group, members in chosen.items()}, sizes


def _moved(groups: Mapping[str, Condition]) -> Floats:
    """How far the attack moved each embedding."""
    difference = groups[ADVERSARIAL].embeds.float() - groups[INITS].embeds.float()
    moved: Floats = difference.flatten(1).norm(dim=1).double().cpu().numpy()
    return moved
