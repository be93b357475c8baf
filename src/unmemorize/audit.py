"""The main job: score every prompt, generate, compare with the training pictures, report.

Work goes to a run directory in shards; a killed audit continues where it was and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.results import Match
from unmemorize.core.run import Progress, RunRecord, Source, atomic, digest, open_run, versions, write_json
from unmemorize.core.sample import generate
from unmemorize.core.shards import merge_shards, run_shards
from unmemorize.data.pictures import load_image, save_image
from unmemorize.data.source import Prompt, read_references
from unmemorize.jobs.copies import LARGE, Matcher, matcher
from unmemorize.jobs.detect import DetectSpec, score_prompts
from unmemorize.jobs.inputs import images_folder, prompt_source, prompts_of
from unmemorize.metrics.similarity import References
from unmemorize.models.load import fingerprint, load
from unmemorize.models.unet import UNetModel
from unmemorize.report.build import build_report
from unmemorize.verdict import summarise


@dataclass(frozen=True)
class AuditSpec:
    """What to audit. Empty `prompts` and `images` stand for the testbed's own.

    `seeds` score every prompt; the first `images_per_prompt` of them generate. `generate` prompts are generated:
    the known ladder, then the highest-scoring half and an even spread of the rest.
    """

    model: str = "testbed"
    prompts: str = ""
    column: str = ""
    images: str = ""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    images_per_prompt: int = 2
    generate: int = 100
    steps: int = 16
    guidance: float = 7.5
    sscd: str = ""
    recipe: str = "sscd-320"


def run_audit(spec: AuditSpec, run: Path, progress: Progress = lambda stage, done, total: None) -> dict[str, Any]:
    """Run or continue an audit in `run`; returns its summary and leaves `report.html` there.

    Raises:
        UserError: The model, the prompts, the pictures or the SSCD file cannot be used, or `run` holds another run.
    """
    prompts = prompts_of(spec.model, spec.prompts, spec.column)
    criterion, match = matcher(spec.sscd, spec.recipe)
    model = load(spec.model)
    references = _references(spec, model)
    record = _record(spec, model, prompts, references, criterion)
    open_run(run, record)
    clock = _Clock(run)
    with clock("detect"):
        scores = _detect(model, prompts, spec, run, progress)
    with clock("generate"):
        chosen = choose(prompts, scores, spec.generate)
        _generate(model, chosen, spec, run, progress)
    with clock("verify"):
        matches = _verify(run, references, match, spec)
    summary = summarise(prompts, scores, matches, _evaluations(model, len(prompts), len(chosen), spec))
    write_json(run / "summary.json", summary)
    record.model_copy(update={"status": "finished"}).save(run)
    build_report(run)
    return summary


def _references(spec: AuditSpec, model: UNetModel) -> References | None:
    folder = images_folder(spec.model, spec.images)
    if folder and not spec.sscd and max(model.image_size) >= LARGE:
        raise UserError(
            f"pictures of {max(model.image_size)} px are compared by a copy-detection network: name its file with "
            "--sscd, or leave out --images to score only"
        )
    return read_references(folder, model.image_size) if folder else None


def _record(
    spec: AuditSpec, model: UNetModel, prompts: Sequence[Prompt], references: References | None, criterion: Criterion
) -> RunRecord:
    values = dataclasses.asdict(spec) | {"seeds": list(spec.seeds)}
    data = {"prompts": prompt_source(spec.prompts or spec.model, prompts)}
    if references is not None:
        facts = repr((references.names, references.masks, references.captions)).encode(errors="surrogateescape")
        pixels = digest([facts, *(image.numpy().tobytes() for image in references.images)])
        data["images"] = Source(source=spec.images or spec.model, sha256=pixels, count=len(references.names))
    return RunRecord(
        status="running",
        spec=values,
        versions=versions(),
        model={"name": model.name, "fingerprint": fingerprint(model)},
        data=data,
        criterion=dataclasses.asdict(criterion),
    )


class _Clock:
    """Wall seconds of each stage, kept apart from what is reproducible."""

    def __init__(self, run: Path) -> None:
        self._path = run / "timing.json"
        fresh = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": {}}
        self._timing = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else fresh

    def __call__(self, stage: str) -> _Clock:
        self._stage, self._since = stage, time.perf_counter()
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        seconds = self._timing["seconds"]
        seconds[self._stage] = round(seconds.get(self._stage, 0) + time.perf_counter() - self._since, 2)
        write_json(self._path, self._timing)


def _detect(model: UNetModel, prompts: list[Prompt], spec: AuditSpec, run: Path, progress: Progress) -> np.ndarray:
    """Score every prompt at every seed: (prompts, seeds)."""
    what = DetectSpec(spec.model, spec.prompts, spec.column, seeds=spec.seeds, steps=spec.steps)
    table = score_prompts(model, prompts, what, run, progress)
    return table["score"].to_numpy().reshape(len(prompts), len(spec.seeds))


def choose(prompts: Sequence[Prompt], scores: np.ndarray, count: int) -> list[Prompt]:
    """The prompts to generate: the verbatim ladder, half of what is left by score, an even spread of the rest.

    The first group carries the dose-response curve and the last shows what a low score means, so neither may depend
    on the score.
    """
    ladder = _spread([p for p in prompts if p.kind == "verbatim"], count)
    order = [prompts[i] for i in np.argsort(-scores.mean(axis=1), kind="stable")]
    others = [p for p in order if p.kind != "verbatim"]
    top = others[: (count - len(ladder)) // 2]
    return [*ladder, *top, *_spread(others[len(top) :], count - len(ladder) - len(top))]


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    picks = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
    return [prompts[i] for i in picks]


def _generate(model: UNetModel, chosen: Sequence[Prompt], spec: AuditSpec, run: Path, progress: Progress) -> None:
    pairs = [(p, seed) for p in chosen for seed in spec.seeds[: spec.images_per_prompt]]

    def work(piece: Sequence[tuple[Prompt, int]]) -> list[dict[str, Any]]:
        cond = model.encode([p.text for p, _ in piece])
        images = generate(model, cond, seeds=[s for _, s in piece], steps=spec.steps, guidance=spec.guidance)
        rows = []
        for (prompt, seed), image in zip(piece, images, strict=True):
            name = f"images/{prompt.id}-{seed}.png"
            save_image(image, run / name)
            rows.append({"id": prompt.id, "seed": seed, "image": name})
        return rows

    for done in run_shards(pairs, work, folder=run / "shards" / "generate", size=16):
        progress("generate", done, len(pairs))
    merge_shards(run / "shards" / "generate", run / "scores" / "images.parquet")


def _verify(run: Path, references: References | None, match: Matcher, spec: AuditSpec) -> list[dict[str, Any]] | None:
    folder = images_folder(spec.model, spec.images)
    if references is None or folder is None:
        return None
    rows = pq.read_table(run / "scores" / "images.parquet").to_pylist()
    matches = match(torch.stack([load_image(run / row["image"]) for row in rows]), references)
    captions = dict(zip(references.names, references.captions, strict=True))
    found = [row | _match_row(match, captions[match.nearest]) for row, match in zip(rows, matches, strict=True)]
    _copy_references(run, folder, {m.nearest for m in matches})
    with atomic(run / "scores" / "verify.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(found), temporary)
    return found


def _match_row(match: Match, caption: str | None) -> dict[str, Any]:
    values = {"distance": match.distance, "ratio": match.value, "verdict": match.verdict}
    return {"nearest": _reference_name(match.nearest), "caption": caption} | values


def _reference_name(name: str) -> str:
    # A training picture's own name may hold anything; in the run directory it is known by a hash.
    return f"references/{digest([os.fsencode(name)])[:16]}.png"


def _copy_references(run: Path, folder: Path, used: set[str]) -> None:
    for name in used:
        save_image(load_image(folder / name), run / _reference_name(name))


def _evaluations(model: UNetModel, prompts: int, chosen: int, spec: AuditSpec) -> dict[str, int]:
    calls = len(model.schedule(spec.steps).timesteps) * (2 if spec.guidance > 1 else 1)
    return {
        "detect": len(spec.seeds) * (prompts + 1),
        "generate": chosen * len(spec.seeds[: spec.images_per_prompt]) * calls,
    }
