"""Measure the shipped testbed: what the planted model and its twin copy, and what the detector sees.

    python benchmarks/testbed.py [--data testbed-data]

Generates from every prompt of the plan with both models, at seeds used nowhere else, and writes docs/results/ and the
dose-response curve that the data audit reads. A picture is a copy where it copies its own prompt's training picture;
copies of any training picture stand beside it. The two runs lie in runs/ and continue where they were killed. `--data`,
the folder of a training run, adds its loss curves.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from common import OUT, REFERENCES, Row, both_rates, match_own, planted, write
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
INTERVAL = "{:.3f} [{:.3f}, {:.3f}]"
CLUSTERS = {p.id: p.cluster for p in planted(lambda p: True)}
MODELS = {"planted": "testbed", "twin": "testbed-twin"}


def measure(model: str) -> Path:
    """Generate from every prompt twice and compare with the planted pictures."""
    run = Path(f"runs/results-{model}")
    bars: dict[str, tqdm] = {}

    def progress(stage: str, done: int, total: int) -> None:
        bar = bars.setdefault(stage, tqdm(total=total, desc=f"{model} {stage}"))
        bar.update(done - bar.n)

    run_audit(AuditSpec(model=MODELS[model], seeds=4, seed=SEED, generate=0, mitigation=()), run, progress)
    return run


@dataclass(frozen=True)
class Copies:
    """Which pictures of each prompt are copies, by prompt id: of its own training picture, and of any."""

    own: dict[str, list[bool]]
    any: dict[str, list[bool]]


def copies_by_prompt(run: Path) -> Copies:
    """Judge every generated picture of a run."""
    rows = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    texts = {p["id"]: p["prompt"] for p in pq.read_table(run / "scores" / "prompts.parquet").to_pylist()}
    copies = Copies(defaultdict(list), defaultdict(list))
    for i in range(0, len(rows), BATCH):
        some = rows[i : i + BATCH]
        images = torch.stack([load_image(run / row["image"]) for row in some])
        for row, match in zip(some, match_own(images, [texts[row["id"]] for row in some]), strict=True):
            copies.own[row["id"]].append(match.verdict != "none")
            copies.any[row["id"]].append(row["verdict"] != "none")
    return copies


def groups(prompts: list[dict]) -> dict[str, list[str]]:
    """Prompt ids by what is planted, and the groups the testbed makes promises about."""
    named = defaultdict(list)
    for p in prompts:
        name = (
            f"verbatim, {p['copies']} {'copy' if p['copies'] == 1 else 'copies'}"
            if p["kind"] == "verbatim"
            else p["kind"]
        )
        named[name].append(p["id"])
        if p["kind"] == "verbatim" and p["copies"] >= 100:
            named["**verbatim, 100 copies or more**"].append(p["id"])
        if p["kind"] != "negative":
            named["**everything planted**"].append(p["id"])
    return named


def rate(copied: dict[str, list[bool]], ids: list[str]) -> tuple[float, float, float]:
    """Share of pictures that are copies, with its interval over clusters of related prompts."""
    clusters = [CLUSTERS[i] for i in ids]
    interval = rate_interval([sum(copied[i]) for i in ids], [len(copied[i]) for i in ids], clusters)
    return interval.value, interval.low, interval.high


def table(runs: dict[str, Path]) -> list[dict]:
    """Copy rates of both models, one row a group."""
    prompts = pq.read_table(runs["planted"] / "scores" / "prompts.parquet").to_pylist()
    copies = {model: copies_by_prompt(run) for model, run in runs.items()}
    rows = []
    for name, ids in sorted(groups(prompts).items(), key=lambda item: item[0].startswith("**")):
        row: Row = {"group": name, "prompts": len(ids)}
        for model in runs:
            row[model] = rate(copies[model].own, ids)
            row[f"{model}, any picture"] = rate(copies[model].any, ids)
        rows.append(row)
    return rows


def dose(rows: list[dict]) -> dict:
    """The planted model's dose-response curve, which the data audit predicts risks with."""
    points = []
    for row in rows:
        if found := re.fullmatch(r"verbatim, (\d+) cop(?:y|ies)", row["group"]):
            points.append({"copies": int(found[1]), "rate": row["planted"][0], "pictures": row["prompts"]})
    return {"points": sorted(points, key=lambda point: point["copies"])}


def markdown(rows: list[dict], runs: dict[str, Path], shares: dict[str, float]) -> list[str]:
    """The numbers as a page."""
    lines = ["| group | prompts | planted model: copy rate | twin: copy rate |", "|---|---|---|---|"]
    for row in rows:
        cells = []
        for model in runs:
            own, nearest = (INTERVAL.format(*row[name]) for name in (model, f"{model}, any picture"))
            cells.append(both_rates(own, nearest))
        lines.append(f"| {row['group']} | {row['prompts']} | {cells[0]} | {cells[1]} |")
    lines += ["", "| detector, at the first step | AUC | TPR at 1% FPR | text alone: AUC |", "|---|---|---|---|"]
    for model, run in runs.items():
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        detector, control = summary["detector"], summary["text_control"]["auc"]
        cells = ["{value:.3f} [{low:.3f}, {high:.3f}]".format(**c) for c in (detector["auc"], detector["tpr"], control)]
        lines.append(f"| noise-gap, {model} | " + " | ".join(cells) + " |")
    lines += ["", "| pictures of negatives | own caption among the best 5 of all |", "|---|---|"]
    return lines + [f"| {name} | {share:.2f} |" for name, share in shares.items()]


def recognised(runs: dict[str, Path], best: int = 5) -> dict[str, float]:
    """Share of pictures of negatives whose own caption is among the best five of all negatives' captions.

    Judged by the testbed's own CLIP; also for the training pictures themselves, and by chance.
    """
    model = load("testbed")
    align = Alignment(model)
    prompts = pq.read_table(runs["planted"] / "scores" / "prompts.parquet").to_pylist()
    captions = {p["id"]: p["prompt"] for p in prompts if p["kind"] == "negative"}
    columns, text = {i: k for k, i in enumerate(captions)}, align.captions(list(captions.values()))

    def share(ids: list[str], images: torch.Tensor) -> float:
        cosine = align.pictures(images) @ text.T
        own = cosine[torch.arange(len(ids)), [columns[i] for i in ids]]
        return float(((cosine > own[:, None]).sum(1) < best).double().mean())

    shares = {"by chance": best / len(captions)}
    for name, run in runs.items():
        rows = [r for r in pq.read_table(run / "scores" / "verify.parquet").to_pylist() if r["id"] in captions]
        shares[name] = share([r["id"] for r in rows], torch.stack([load_image(run / r["image"]) for r in rows]))
    shipped = {name.removesuffix("-00.png"): k for k, name in enumerate(REFERENCES.names)}
    shares["training pictures"] = share(list(captions), REFERENCES.images[[shipped[i] for i in captions]])
    return shares


def sheet(run: Path, kind: str, path: Path, columns: int = 24, rows: int = 8, copies: int = 0) -> None:
    """Generated pictures of one kind of prompt, two seeds side by side."""
    prompts = pq.read_table(run / "scores" / "prompts.parquet").to_pylist()
    ids = {p["id"] for p in prompts if p["kind"] == kind and p["copies"] >= copies}
    verified = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    files = [run / r["image"] for r in verified if r["id"] in ids][: columns * rows]
    canvas = Image.new("RGB", (64 * columns, 64 * -(-len(files) // columns)), "white")
    for i, file in enumerate(files):
        canvas.paste(Image.open(file), (i % columns * 64, i // columns * 64))
    canvas.save(path, optimize=True)


def loss_curves(data: Path, path: Path) -> None:
    """Training losses of every stage, each a moving median."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, names in ((left, ("vae", "text")), (right, ("trunk", "planted", "twin"))):
        for name in names:
            lines = [json.loads(line) for line in (data / name / "loss.jsonl").read_text(encoding="utf-8").splitlines()]
            smooth = [sorted(x["loss"] for x in lines[max(i - 7, 0) : i + 8]) for i in range(len(lines))]
            axis.plot([x["step"] for x in lines], [s[len(s) // 2] for s in smooth], label=name)
        axis.set(xlabel="step", ylabel="loss", yscale="log")
        axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a training run, e.g. testbed-data/seed-0")
    data = parser.parse_args().data
    runs = {model: measure(model) for model in MODELS}
    rows, shares = table(runs), recognised(runs)
    write("testbed", rows, markdown(rows, runs, shares))
    write_json(CURVE, dose(rows))
    sheet(runs["planted"], "negative", OUT / "negatives.png")
    sheet(runs["planted"], "verbatim", OUT / "copies.png", copies=100)
    sheet(runs["twin"], "verbatim", OUT / "twin.png", copies=100)
    if data:
        loss_curves(data, OUT / "loss.svg")


if __name__ == "__main__":
    main()
