"""What the planted model and its twin copy, and what the detector sees.

Generates from every prompt of the plan with both models, at seeds used nowhere else, and writes the dose-response curve
that the data audit reads. A picture is a copy where it copies its own prompt's training picture; copies of any training
picture stand beside it. The two runs lie in runs/ and continue where they were killed. `--data`, the folder of a
training run such as testbed-data/seed-0, adds its loss curves.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from common import are_copies, both_rates, match_own, planted, references
from harness import OUT, Options, Row, Study, numbers_of, save_figure, show, table
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from unmemorize.audit import AuditSpec, run_audit
from unmemorize.core.run import write_json
from unmemorize.data.pictures import load_image
from unmemorize.metrics.ranking import rate_interval
from unmemorize.models.load import load
from unmemorize.testbed.alignment import Alignment
from unmemorize.testbed.dose import CURVE

SEED = 100  # the first of four that score every prompt; two generate
BATCH = 64
MODELS = {"planted": "testbed-ladder", "twin": "testbed-twin"}
RUNS = {name: Path(f"runs/results-{name}") for name in MODELS}


def generate(name: str) -> None:
    """Generate from every prompt twice and compare with the planted pictures."""
    bars: dict[str, tqdm] = {}

    def progress(stage: str, done: int, total: int) -> None:
        bar = bars.setdefault(stage, tqdm(total=total, desc=f"{name} {stage}"))
        bar.update(done - bar.n)

    run_audit(AuditSpec(model=MODELS[name], seeds=4, seed=SEED, generate=0, mitigation=()), RUNS[name], progress)


def rows_of(name: str, scores: str) -> list[Row]:
    """A table of a model's run."""
    return pq.read_table(RUNS[name] / "scores" / f"{scores}.parquet").to_pylist()


def pictures_of(name: str, verified: list[Row]) -> torch.Tensor:
    """Generated pictures of a model's run."""
    return torch.stack([load_image(RUNS[name] / row["image"]) for row in verified])


@dataclass(frozen=True)
class Copies:
    """Which pictures of each prompt are copies, by prompt id: of its own training picture, and of any."""

    own: dict[str, list[bool]]
    any: dict[str, list[bool]]


def copies_by_prompt(name: str) -> Copies:
    """Judge every generated picture of a run."""
    rows, texts = rows_of(name, "verify"), {p["id"]: p["prompt"] for p in rows_of(name, "prompts")}
    copies = Copies(defaultdict(list), defaultdict(list))
    for i in range(0, len(rows), BATCH):
        some = rows[i : i + BATCH]
        own = match_own(pictures_of(name, some), [texts[row["id"]] for row in some])
        for row, copied in zip(some, are_copies(own), strict=True):
            copies.own[row["id"]].append(copied)
            copies.any[row["id"]].append(row["verdict"] != "none")
    return copies


def groups(prompts: list[Row]) -> dict[str, list[str]]:
    """Prompt ids by what is planted, and the groups the testbed makes promises about."""
    named = defaultdict(list)
    for p in prompts:
        verbatim = p["kind"] == "verbatim"
        named[f"verbatim, {copies_text(p['copies'])}" if verbatim else p["kind"]].append(p["id"])
        if verbatim and p["copies"] >= 100:
            named["**verbatim, 100 copies or more**"].append(p["id"])
        if p["kind"] != "negative":
            named["**everything planted**"].append(p["id"])
    return named


def copies_text(count: int) -> str:
    return f"{count} {'copy' if count == 1 else 'copies'}"


def measure(options: Options) -> Row:
    """Copy rates of both models, one row a group; how well the detector ranks; what pictures of negatives show."""
    for name in MODELS:
        generate(name)
    cluster = {p.id: p.cluster for p in planted(lambda p: True)}
    copies = {name: copies_by_prompt(name) for name in MODELS}

    def rate(copied: dict[str, list[bool]], ids: list[str]) -> list[float]:
        hits, trials = [sum(copied[i]) for i in ids], [len(copied[i]) for i in ids]
        return numbers_of(rate_interval(hits, trials, [cluster[i] for i in ids]))

    rows = []
    for group, ids in sorted(groups(rows_of("planted", "prompts")).items(), key=lambda item: item[0].startswith("**")):
        row: Row = {"group": group, "prompts": len(ids)}
        for name in MODELS:
            row |= {name: rate(copies[name].own, ids), f"{name}, any picture": rate(copies[name].any, ids)}
        rows.append(row)
    write_json(CURVE, dose(rows))
    if options.data:
        loss_curves(Path(options.data))
    detectors = {}
    for name, run in RUNS.items():
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        detectors[name] = summary["detector"] | {"text alone": summary["text_control"]["auc"]}
    return {"groups": rows, "detectors": detectors, "recognised": recognised()}


def dose(rows: list[Row]) -> Row:
    """The planted model's dose-response curve, which the data audit predicts risks with."""
    points = []
    for row in rows:
        if found := re.fullmatch(r"verbatim, (\d+) cop(?:y|ies)", row["group"]):
            points.append({"copies": int(found[1]), "rate": row["planted"][0], "pictures": row["prompts"]})
    return {"points": sorted(points, key=lambda point: point["copies"])}


def page(numbers: Row) -> Iterator[str]:
    """Copy rates, the detector, and pictures of negatives."""
    lines = []
    for row in numbers["groups"]:
        cells = [both_rates(show(row[name], ".3f"), show(row[f"{name}, any picture"], ".3f")) for name in MODELS]
        lines.append([row["group"], str(row["prompts"]), *cells])
    yield from table("group | prompts | planted model: copy rate | twin: copy rate", lines)
    lines = []
    for name, areas in numbers["detectors"].items():
        lines.append([f"noise-gap, {name}", *(show(areas[what], ".3f") for what in ("auc", "tpr", "text alone"))])
    yield from ("", *table("detector, at the first step | AUC | TPR at 1% FPR | text alone: AUC", lines), "")
    lines = [[name, f"{share:.2f}"] for name, share in numbers["recognised"].items()]
    yield from table("pictures of negatives | own caption among the best 5 of all", lines)


def recognised(best: int = 5) -> dict[str, float]:
    """Share of pictures of negatives whose own caption is among the best five of all negatives' captions.

    Judged by the testbed's own CLIP; also for the training pictures themselves, and by chance.
    """
    align = Alignment(load("testbed-ladder"))
    captions = {p["id"]: p["prompt"] for p in rows_of("planted", "prompts") if p["kind"] == "negative"}
    columns, text = {i: k for k, i in enumerate(captions)}, align.captions(list(captions.values()))

    def share(ids: list[str], images: torch.Tensor) -> float:
        cosine = align.pictures(images) @ text.T
        own = cosine[torch.arange(len(ids)), [columns[i] for i in ids]]
        return float(((cosine > own[:, None]).sum(1) < best).double().mean())

    shares = {"by chance": best / len(captions)}
    for name in MODELS:
        rows = [row for row in rows_of(name, "verify") if row["id"] in captions]
        shares[name] = share([row["id"] for row in rows], pictures_of(name, rows))
    shipped = {name.removesuffix("-00.png"): k for k, name in enumerate(references().names)}
    shares["training pictures"] = share(list(captions), references().images[[shipped[i] for i in captions]])
    return shares


def sheet(name: str, kind: str, path: Path, columns: int = 24, rows: int = 8, copies: int = 0) -> None:
    """Generated pictures of one kind of prompt, two seeds side by side."""
    ids = {p["id"] for p in rows_of(name, "prompts") if p["kind"] == kind and p["copies"] >= copies}
    files = [RUNS[name] / row["image"] for row in rows_of(name, "verify") if row["id"] in ids][: columns * rows]
    canvas = Image.new("RGB", (64 * columns, 64 * -(-len(files) // columns)), "white")
    for i, file in enumerate(files):
        canvas.paste(Image.open(file), (i % columns * 64, i // columns * 64))
    canvas.save(path, optimize=True)


def loss_curves(data: Path) -> None:
    """Training losses of every stage, each a moving median."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, names in ((left, ("vae", "text")), (right, ("trunk", "planted", "twin"))):
        for name in names:
            text = (data / name / "loss.jsonl").read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines()[::20]]
            smooth = [sorted(x["loss"] for x in lines[max(i - 7, 0) : i + 8]) for i in range(len(lines))]
            axis.plot([x["update"] for x in lines], [s[len(s) // 2] for s in smooth], label=name)
        axis.set(xlabel="step", ylabel="loss", yscale="log")
        axis.legend(frameon=False)
    save_figure(figure, "loss.svg")


def sheets(numbers: Row) -> None:
    """What is generated from negatives and from what was planted often."""
    sheet("planted", "negative", OUT / "negatives.png")
    sheet("planted", "verbatim", OUT / "copies.png", copies=100)
    sheet("twin", "verbatim", OUT / "twin.png", copies=100)


STUDY = Study(
    title="What the models copy",
    about="Every prompt of the plan, two seeds, 16 sampling steps, guidance 7.5.",
    page=page,
    measure=measure,
    options={"data": ""},
    figures=sheets,
)
