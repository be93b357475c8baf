"""Attack one picture from many starts, and measure how alike the embeddings are that bring it back."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file

from unmemorize.attack.dori import Dori
from unmemorize.core.choose import evenly
from unmemorize.core.errors import UserError
from unmemorize.core.files import real_path
from unmemorize.core.methods import Subject
from unmemorize.core.model import Condition, DiffusionModel, joined
from unmemorize.core.results import Match
from unmemorize.core.run import Progress, Run, RunRecord, atomic, quiet, write_json
from unmemorize.core.sample import Sampler, generate, generators
from unmemorize.core.shards import Row, merge_shards, run_shards, write_rows
from unmemorize.core.specs import LocalitySpec, limited
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import Prompt
from unmemorize.localize.locality import (
    Floats,
    Units,
    distances,
    feed_forward_activations,
    layer_units,
    mean_over,
    measure,
    selections,
    tsne,
    value_activations,
)
from unmemorize.localize.nemo import Nemo
from unmemorize.localize.reference import cache_folder, cached_reference
from unmemorize.localize.wanda import Wanda
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import DUPLICATE, References
from unmemorize.report.locality import draw
from unmemorize.stages.inputs import bundle_of, load_as_asked, prompt_source, record_of, text_source, with_sampling
from unmemorize.study.copies import CopyCheck, copy_check

ADVERSARIAL, INITS, MEMORIZED, ORDINARY = "adversarial", "inits", "memorized", "ordinary"
FIRST_INIT, FIRST_HELD_OUT = 1_000_000, 1000  # seeds that neither the attack nor NeMo and Wanda draw from
PIECE = 8  # embeddings between two saves


@dataclass(frozen=True)
class _Study:
    """What every part of a run needs."""

    spec: LocalitySpec
    model: DiffusionModel
    copied: CopyCheck
    run: Path
    progress: Progress

    def pieces(
        self, stage: str, items: Sequence[Any], work: Callable[[Sequence[Any]], list[Row]], size: int = PIECE
    ) -> pa.Table:
        """The rows that `work` makes of all items, `size` at a time and each piece once, also in STAGE.parquet."""
        folder = self.run / "shards" / stage
        for done in run_shards(items, work, folder=folder, size=size):
            self.progress(stage, done, len(items))
        return merge_shards(folder, self.run / f"{stage}.parquet")

    def matches(self, cond: Condition) -> list[list[Match]]:
        """What the pictures of each embedding at the held-out seeds are nearest to."""
        seeds = list(range(FIRST_HELD_OUT, FIRST_HELD_OUT + self.spec.pictures))
        pictures = generate(
            self.model,
            cond.repeat(len(seeds)),
            seeds=seeds * len(cond),
            sampler=Sampler(self.spec.steps, self.spec.guidance),
        )
        found = self.copied.match(pictures)
        return [found[i : i + len(seeds)] for i in range(0, len(found), len(seeds))]


def locality(spec: LocalitySpec, run: Path, progress: Progress = quiet) -> Row:
    """Run or continue the three tests of locality in `run`; returns what it leaves in `locality.json`.

    Raises:
        UserError: The model, the picture or the prompts cannot be used, `run` holds another run, or fewer than two
            embeddings or two prompts give copies.
        NotApplicable: The model lacks the layers that NeMo or Wanda look at.
    """
    if spec.inits < 2 or spec.pictures < 1 or spec.updates < 1:
        raise UserError(
            "locality compares embeddings in pairs: name two inits or more, and a picture and an update at least"
        )
    bundle = bundle_of(spec)
    prompts, ordinary = _memorized(spec, bundle.prompts), bundle.ordinary()
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    layers = layer_units(model, spec.layers)  # before anything is computed: a model may lack them
    references = bundle.references(model.image_size)
    copied = copy_check(model, references, bundle.source("references"), spec.sscd, spec.recipe)
    study = _Study(spec, model, copied, run, progress)
    target = _target(spec, bundle, references)
    with Run.open(run, _record(study, prompts, ordinary)):
        attacked, groups = _groups(study, target, prompts, ordinary)
        spread, chosen = _distances(study, groups), _selections(study, groups, ordinary)
        copies = [row["copies"] for row in attacked]
        result = {
            "image": target,
            "inits": spec.inits,
            "copy_rate": dataclasses.asdict(rate_interval(copies, [spec.pictures] * len(copies))),
            "embeddings": {group: len(cond) for group, cond in groups.items()},
            "moved": dataclasses.asdict(mean_over(_moved(groups))),
            **dataclasses.asdict(measure(spread, chosen, layers)),
            "steps": spec.updates,
            "evaluations": sum(row["evaluations"] for row in attacked),
        }
        points = _map(groups, run / "map.parquet")
        with atomic(run / "locality.svg") as temporary:
            temporary.write_text(draw(result, points), encoding="utf-8")
        write_json(run / "locality.json", result)
    return result


def _memorized(spec: LocalitySpec, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts in the file, or the embedded model's memorable ones; one of each cluster, evenly spread."""
    given = [p for p in prompts if spec.prompts or p.memorable]
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
    spec = study.spec
    data = {
        "prompts": prompt_source(spec.prompts or spec.model, prompts),
        "ordinary": text_source(spec.ordinary or "built in", ordinary),
        "references": study.copied.source,
    }
    return record_of(spec, study.model, data, study.copied.criterion)


def _groups(
    study: _Study, target: str, prompts: Sequence[Prompt], ordinary: Sequence[str]
) -> tuple[list[Row], dict[str, Condition]]:
    """Every attack's row, and the embeddings to compare, which `embeddings.safetensors` holds by the same names."""
    spec, model = study.spec, study.model
    attacked = _attack(study, target)
    kept = [i for i, row in enumerate(attacked) if 2 * row["copies"] >= spec.pictures]
    if len(kept) < 2:
        raise UserError(
            f"{spec.target}: {len(kept)} of {spec.inits} inits lead to copies after {spec.updates} updates, and pairs "
            "are compared: name more --updates or --inits in another --run, or another picture"
        )
    texts = _copying(study, prompts)
    if len(texts) < 2:
        raise UserError(
            f"{len(texts)} of {len(prompts)} prompts copy a training picture, each another: name a file of memorized "
            "captions with --prompts"
        )
    folder = study.run / "shards" / "attack"
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    groups = {name: Condition(torch.cat([part[name] for part in parts])[kept]) for name in (ADVERSARIAL, INITS)}
    usual = [ordinary[i] for i in np.linspace(0, len(ordinary) - 1, min(spec.inits, len(ordinary))).astype(int)]
    groups |= {MEMORIZED: model.encode(texts), ORDINARY: model.encode(usual)}
    with atomic(study.run / "embeddings.safetensors") as temporary:
        save_file({name: cond.embeds.cpu().contiguous() for name, cond in groups.items()}, temporary)
    return attacked, {name: cond.to(model.device) for name, cond in groups.items()}


def _attack(study: _Study, target: str) -> list[Row]:
    """Attack from random starts; the embeddings are left beside the pieces."""
    spec, model, references = study.spec, study.model, study.copied.references
    own = _same_picture(references, target)
    with torch.no_grad():
        latent = model.invert(references.named([target]).images)
    like = model.encode([""]).embeds

    def work(piece: Sequence[int]) -> list[Row]:
        drawn = [torch.randn(like.shape[1:], generator=g) for g in generators([FIRST_INIT + i for i in piece])]
        inits = Condition(torch.stack(drawn).to(like))
        latents = latent.expand(len(piece), -1, -1, -1)
        attack = Dori(updates=spec.updates).attack(Subject(model), latents, inits, seeds=piece)
        with atomic(study.run / "shards" / "attack" / f"{piece[0]:05d}.safetensors") as temporary:
            pair = {ADVERSARIAL: attack.last, INITS: inits}
            save_file({name: cond.embeds.cpu().contiguous() for name, cond in pair.items()}, temporary)
        rows = zip(piece, study.matches(attack.last), attack.losses.T.tolist(), strict=True)
        each = attack.evaluations // len(piece)
        return [
            {"init": i, "copies": sum(_copies(m, own) for m in found), "loss": losses[-1], "evaluations": each}
            for i, found, losses in rows
        ]

    rows: list[Row] = study.pieces("attack", range(spec.inits), work).to_pylist()
    return rows


def _copies(match: Match, own: Collection[str]) -> bool:
    return match.verdict != "none" and match.nearest in own


def _same_picture(references: References, name: str) -> list[str]:
    """The picture and its duplicates in the folder, in the folder's order."""
    picture = references.named([name]).images
    near = DUPLICATE * picture[0].flatten(1).var(1).mean().sqrt()
    return [
        other
        for other, image in zip(references.names, references.batches(1), strict=True)
        if other == name or (image - picture).square().mean().sqrt() < near
    ]


def _copying(study: _Study, prompts: Sequence[Prompt]) -> list[str]:
    """Prompts that copy one picture at half of the held-out seeds, one for each picture."""

    def work(piece: Sequence[Prompt]) -> list[Row]:
        found = study.matches(study.model.encode([p.text for p in piece]))
        copied = [Counter(m.nearest for m in some if m.verdict != "none").most_common(1) for some in found]
        return [
            {"prompt": p.text, "copies": most[0][1] if most else 0, "picture": most[0][0] if most else ""}
            for p, most in zip(piece, copied, strict=True)
        ]

    rows = [r for r in study.pieces("prompts", prompts, work).to_pylist() if 2 * r["copies"] >= study.spec.pictures]
    pictures = [_same_picture(study.copied.references, row["picture"])[0] for row in rows]
    return list({name: row["prompt"] for name, row in reversed(list(zip(pictures, rows, strict=True)))}.values())[::-1]


def _distances(study: _Study, groups: Mapping[str, Condition]) -> dict[str, dict[str, Floats]]:
    """Distances of all pairs by group and layer; the layer is empty for the embeddings' own."""

    def work(piece: Sequence[str]) -> list[Row]:
        (group,) = piece
        cond = groups[group]
        values = value_activations(study.model, cond, study.spec.layers)
        inner = feed_forward_activations(study.model, cond)
        activations = itertools.chain([("", cond.embeds)], values, inner)
        return [{"group": group, "layer": name, "distances": distances(a)} for name, a in activations]

    found: dict[str, dict[str, Floats]] = {group: {} for group in groups}
    for row in study.pieces("distances", list(groups), work, size=1).to_pylist():
        found[row["group"]][row["layer"]] = np.array(row["distances"])
    return found


def _selections(
    study: _Study, groups: Mapping[str, Condition], ordinary: Sequence[str]
) -> dict[str, list[dict[str, Units]]]:
    """What NeMo and Wanda select for each embedding of each group, by layer; layers without any are left out."""
    spec, model = study.spec, study.model
    usual = cached_reference(model, model.encode(ordinary), cache_folder(), study.progress)
    nemo = Nemo(layers=spec.layers, refine=spec.refine, reference=usual)
    wanda = Wanda(sparsity=spec.sparsity)
    items = [(group, i) for group, cond in groups.items() for i in range(len(cond))]

    def work(piece: Sequence[tuple[str, int]]) -> list[Row]:
        cond = joined([groups[group][[i]] for group, i in piece])
        found = selections(model, cond, nemo, wanda)
        return [
            {"group": group, "embedding": i, "layer": name, "units": units}
            for (group, i), chosen in zip(piece, found, strict=True)
            for name, units in (chosen or {"": np.zeros(0, np.int32)}).items()
        ]

    table = study.pieces("selections", items, work)
    chosen: dict[str, list[dict[str, Units]]] = {group: [{} for _ in range(len(c))] for group, c in groups.items()}
    columns = (table[name].to_pylist() for name in ("group", "embedding", "layer"))
    for group, i, layer, units in zip(*columns, table["units"], strict=True):
        chosen[group][i][layer] = units.values.to_numpy()
    return chosen


def _moved(groups: Mapping[str, Condition]) -> Floats:
    """How far the attack moved each embedding."""
    difference = groups[ADVERSARIAL].embeds.float() - groups[INITS].embeds.float()
    moved: Floats = difference.flatten(1).norm(dim=1).double().cpu().numpy()
    return moved


def _map(groups: Mapping[str, Condition], path: Path) -> list[Row]:
    """The place of every embedding in the plane."""
    names = [(group, i) for group, cond in groups.items() for i in range(len(cond))]
    points = tsne(torch.cat([cond.embeds for cond in groups.values()]))
    rows = [{"group": group, "embedding": i, "x": x, "y": y} for (group, i), (x, y) in zip(names, points, strict=True)]
    write_rows(path, rows)
    return rows
