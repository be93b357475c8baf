"""All detectors on the reporting branches of the panel: `unmemorize bench`, and both branches on the same prompts.

Once for the U-Net and once for the transformer. A ranking is a run of its own, in runs/ranking-FAMILY: a stopped one
goes on. Nothing was chosen on these branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from branches import pairs, templates
from harness import Cases, Options, Row, Study, show, table

from unmemorize.audit.bench import run_bench
from unmemorize.core.run import quiet
from unmemorize.core.specs import BenchSpec, DetectSpec
from unmemorize.data.bundle import is_ordinary
from unmemorize.detect.cascade import Cascade
from unmemorize.metrics.ranking import ranked_together
from unmemorize.report.bench import COMBINED, EVERY, TEXT
from unmemorize.stages.detect import detect
from unmemorize.testbed.embedded import own_of_branch
from unmemorize.testbed.panel import Entry

RUNS = Path("runs")
FAMILIES = {
    "U-Net": {"C": "testbed-c", "D": "testbed-d"},
    "transformer": {"C": "testbed-flow-c", "D": "testbed-flow-d"},
}
Scores = dict[str, dict[str, float]]  # the mean over seeds, by method and prompt
# Of the transformer, an evaluation of which takes several times the U-Net's, dear methods score the same prompts alone.
METHODS = {
    "U-Net": (),
    "transformer": (
        "noise-gap",
        "noise-similarity",
        "dcs",
        "seed-agreement",
        "edge-agreement",
        "mid-noise",
        "two-probe",
        "dsm",
        "cascade",
    ),
}
DEAR = ("clique", "max-z", "stability", "sharpness", "condition-jacobian", "anisotropy")
DEAR_CASE = "transformer, dear methods"
# On templates, of whose pictures a part alone is memorized.
WHOLE = ("noise-gap", "noise-gap:last=16", "noise-similarity", "two-probe", "mid-noise", "dsm")
LOCAL = {
    "U-Net": (*WHOLE, "masked-gap", "masked-gap:mask=score-map"),
    "transformer": (*WHOLE, "masked-gap:mask=score-map"),
}
PREVALENCES = (0.0, 0.01, 0.1)  # shares of memorized prompts at which a cascade's cost is stated


def cases(options: Options) -> Cases:
    """A ranking of each family, then the methods that were left out of one."""
    named: dict[str, Callable[[Row], Row]] = {family: partial(ranking, family) for family in FAMILIES}
    named[DEAR_CASE] = partial(on_both, "transformer", DEAR, pairs)
    for family, methods in LOCAL.items():
        named[f"{family}, templates"] = partial(on_both, family, methods, templates)
    return Cases({}, named)


def ranking(family: str, rows: Row) -> Row:
    """The rows of the ranking, and those of both branches together on the same prompts."""
    first, *more = FAMILIES[family].values()
    run = RUNS / f"ranking-{family.lower()}"
    ranked = run_bench(BenchSpec(model=first, more=tuple(more), method=METHODS[family]), run, quiet)
    scores = {branch: scores_of(folder_of(run, family, branch)) for branch in FAMILIES[family]}
    row: Row = {"ranking": ranked, "same prompts": same_prompts(scores, pairs())}
    if {Cascade().screen, Cascade().then} <= scores["C"].keys():
        row["cascade"] = {branch: cascade_of(branch, of_branch) for branch, of_branch in scores.items()}
    return row


def on_both(family: str, methods: Sequence[str], chosen: Callable[[], list[Entry]], rows: Row) -> Row:
    """Methods on the same prompts of both branches and nothing else, and their evaluations a seed."""
    entries = chosen()
    ids = {entry.prompts[0]: entry.id for entry in entries}
    prompts = RUNS / f"{entries[0].kind}.txt"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.write_text("".join(f"{text}\n" for text in ids), encoding="utf-8")
    scores: dict[str, Scores] = {}
    spent: dict[str, float] = {}
    for branch, model in FAMILIES[family].items():
        scores[branch] = {}
        for method in methods:
            spec = DetectSpec(model=model, prompts=str(prompts), method=(method,))
            place = RUNS / f"{prompts.stem}-{model}-{method.replace(':', '-').replace('=', '-')}"
            ranked = detect(spec, place, quiet)
            scores[branch][method] = {ids[row["prompt"]]: row["score"] for row in ranked}
            spent[method] = float(np.mean([row["evaluations"] / spec.seeds for row in ranked]))
    return {"same prompts": same_prompts(scores, entries), "evaluations": spent}


def same_prompts(scores: Mapping[str, Scores], entries: Sequence[Entry]) -> Row:
    """How each detector ranks prompts that are memorized in one branch above the same prompts in the other."""
    methods = [method for method in scores["C"] if method in scores["D"]]
    values, positive, clusters = [], [], []
    for entry in entries:
        for branch in scores:
            values.append([scores[branch][method][entry.id] for method in methods])
            positive.append(entry.dose(branch) > 0)
            clusters.append(entry.id)
    ranked = ranked_together(np.array(values), np.array(positive), clusters)
    return {method: asdict(numbers) for method, numbers in zip(methods, ranked, strict=True)}


def cascade_of(branch: str, scores: Scores) -> Row:
    """The cascade on the reporting half's entries, its bar from the choosing half's ordinary prompts, by its parts.

    As `bench --ordinary` does with them; the scores of both parts are those of the ranking.
    """
    cascade = Cascade()
    prompts = own_of_branch(branch).prompts
    screen, then = ({p.id: scores[name][p.id] for p in prompts} for name in (cascade.screen, cascade.then))
    bar = np.quantile([screen[p.id] for p in prompts if is_ordinary(p) and p.half == "choosing"], 1 - cascade.share)
    asked = [p for p in prompts if p.half == "reporting" and p.memorable is not None]
    passes = np.array([screen[p.id] > bar for p in asked])
    positive = np.array([bool(p.memorable) for p in asked])
    values = np.array([[screen[p.id], then[p.id]] for p in asked])
    ranks = values.argsort(axis=0).argsort(axis=0)  # those that pass, in the dear one's order, above all others
    joined = np.where(passes, len(asked) + ranks[:, 1], ranks[:, 0])
    ranked = ranked_together(np.c_[values, joined], positive, [p.cluster or p.id for p in asked])
    names = (cascade.screen, cascade.then, "cascade")
    ordinary = np.array([is_ordinary(p) for p in asked])
    return {
        "share": cascade.share,
        "memorized": int(positive.sum()),
        "ordinary": int((~positive).sum()),
        "methods": {name: asdict(numbers) for name, numbers in zip(names, ranked, strict=True)},
        "passes": {"memorized": float(passes[positive].mean()), "ordinary": float(passes[ordinary].mean())},
    }


def folder_of(run: Path, family: str, branch: str) -> Path:
    """The run of a branch in that of the ranking."""
    models = FAMILIES[family]
    return run / "models" / f"{list(models).index(branch)}-{models[branch]}"


def scores_of(run: Path) -> Scores:
    """The mean over seeds of each prompt's scores, by method and prompt."""
    means = pq.read_table(run / "scores" / "detect.parquet").group_by(["method", "id"]).aggregate([("score", "mean")])
    scores: Scores = {}
    for row in means.to_pylist():
        scores.setdefault(row["method"], {})[row["id"]] = row["score_mean"]
    return scores


def page(numbers: Row) -> Iterator[str]:
    """What the columns say, and the tables of each family."""
    yield (
        "On *the same prompts* each picture was planted a hundred times in one branch and never in the other; text "
        "alone cannot tell them apart (0.5). *Behind* is the difference to the largest area on the same draws of "
        "prompts. C and D are all labelled prompts of a branch, memorized beside ordinary ones, where text alone may "
        "tell something. Evaluations and time are of one prompt and seed, of each method alone; time is a multiple of "
        "one evaluation's. *repeat, 0 copies* are captions that were trained with another number of repetitions."
    )
    settings = numbers["settings"]
    for family in FAMILIES:
        if family in settings:
            yield from ("", f"### Of the {family}", "", *of_family(family, settings[family]))
    if DEAR_CASE in settings:
        yield from ("", "The transformer's dear methods, on the same prompts alone:", "")
        yield from on_both_page(settings[DEAR_CASE])
        yield ""
        yield "`metric-2` reads predicted noise, which is x itself where x is noise alone; `attention-entropy` reads"
        yield "cross-attention. Neither applies."
    for family in LOCAL:
        if f"{family}, templates" in settings:
            yield from ("", f"Templates of the {family}, twenty, each planted in one branch and not in the other:", "")
            yield from on_both_page(settings[f"{family}, templates"])


def on_both_page(numbers: Row) -> Iterator[str]:
    """Methods beside each other on the same prompts."""
    lines = []
    ranked = sorted(numbers["same prompts"].items(), key=lambda item: -item[1]["auc"]["value"])
    for method, own in ranked:
        cells = [show(own[name], form) for name, form in (("auc", ".3f"), ("tpr", ".2f"), ("behind", ".3f"))]
        lines.append([f"`{method}`", *cells, f"{numbers['evaluations'][method]:.3g}"])
    yield from table("method | same prompts: AUC | TPR at 1% FPR | behind the best of these | evaluations", lines)


def of_family(family: str, numbers: Row) -> Iterator[str]:
    """All methods on the same prompts and on each branch, then by kind and number of copies."""
    rows = numbers["ranking"]
    same = numbers["same prompts"]
    branches = FAMILIES[family]
    every = {(row["model"], row["method"]): row for row in rows if row["group"] == EVERY}
    sizes = [f"{row['memorized']} beside {row['ordinary']}" for row in first_of_each(rows).values()]
    yield f"Memorized prompts: {'; '.join(sizes)} ordinary ones."
    lines = []
    for method in sorted(same, key=lambda name: -same[name]["auc"]["value"]):
        own = [show(same[method][name], form) for name, form in (("auc", ".3f"), ("tpr", ".2f"), ("behind", ".3f"))]
        areas = [area(every[model, method], ".3f") for model in branches.values()]
        lines.append([f"`{method}`", *own, *areas, *costs(every[branches["C"], method])])
    for method in (COMBINED, TEXT):
        areas = [area(every[model, method], ".3f") for model in branches.values()]
        lines.append([method, "–", "–", "–", *areas, *costs(every[branches["C"], method])])
    columns = "method | same prompts: AUC | TPR at 1% FPR | behind | C: AUC | D: AUC | evaluations | time"
    yield from ("", *table(columns, lines))
    if "cascade" in numbers:
        parts = (Cascade().screen, Cascade().then)
        cost = [every[branches["C"], name]["evaluations"] for name in parts]
        yield from ("", *cascade_page(numbers["cascade"], cost))
    for branch, model in branches.items():
        yield from ("", f"Areas in {branch}, beside all ordinary prompts:", "", *by_group(rows, model))
    reasons = {row["method"]: row["reason"] for row in rows if row["reason"] is not None}
    for method, reason in reasons.items():
        yield from ("", f"`{method}` does not apply: {reason}.")


def cascade_page(numbers: Row, cost: Sequence[float]) -> Iterator[str]:
    """The cascade beside its parts, which cost so many evaluations each, and what it costs itself."""
    cascade = Cascade()
    sizes = "; ".join(f"{row['memorized']} beside {row['ordinary']}" for row in numbers.values())
    yield (
        f"The cascade as it comes (`{cascade.screen}`, then `{cascade.then}` for those above all but a share of "
        f"{cascade.share} of ordinary prompts; chosen on A), on the prompts of the reporting half ({sizes}). Its bar "
        "comes from the choosing half's ordinary prompts, as with `--ordinary`. Evaluations are those of a list in "
        "which that share of the prompts is memorized, and a share of the dear detector's."
    )
    columns = "branch | method | AUC | TPR at 1% FPR | ordinary that pass | memorized that pass"
    lines = []
    for branch, row in numbers.items():
        for method, own in row["methods"].items():
            passes = row["passes"] if method == "cascade" else {}
            shares = [f"{passes[name]:.2f}" if passes else "–" for name in ("ordinary", "memorized")]
            each = [
                spent(cost, passes, share) if passes else f"{cost[method == cascade.then]:g}" for share in PREVALENCES
            ]
            lines.append([branch, f"`{method}`", show(own["auc"], ".3f"), show(own["tpr"], ".2f"), *shares, *each])
    heads = " | ".join(f"evaluations, {share:.0%} memorized" for share in PREVALENCES)
    yield from ("", *table(f"{columns} | {heads}", lines))


def spent(cost: Sequence[float], passes: Row, memorized: float) -> str:
    """Evaluations of a prompt and seed where a share of the prompts is memorized, also as a share of the dear one's."""
    passing = (1 - memorized) * passes["ordinary"] + memorized * passes["memorized"]
    evaluations = cost[0] + passing * cost[1]
    return f"{evaluations:.2f} ({evaluations / cost[1]:.0%})"


def first_of_each(rows: Sequence[Row]) -> dict[str, Row]:
    """A row of all labelled prompts of each branch, for their numbers."""
    return {row["model"]: row for row in reversed(rows) if row["group"] == EVERY}


def by_group(rows: Sequence[Row], model: str) -> list[str]:
    """The table of one branch: areas by kind and number of copies."""
    own = [
        row for row in rows if row["model"] == model and row["reason"] is None and not row["group"].startswith(EVERY)
    ]
    groups = list(dict.fromkeys(row["group"] for row in own))
    cells = {(row["method"], row["group"]): area(row, ".2f") for row in own}
    methods = list(dict.fromkeys(row["method"] for row in own))
    sizes = {row["group"]: row["memorized"] for row in own}
    lines = [[method, *(cells.get((method, group), "–") for group in groups)] for method in methods]
    return table(["method", *(f"{group} ({sizes[group]})" for group in groups)], lines)


def area(row: Row, form: str) -> str:
    """An area with its interval; alone where there are too few unrelated prompts for one."""
    if row["auc_low"] is None:
        return f"{row['auc']:{form}}"
    return show([row["auc"], row["auc_low"], row["auc_high"]], form)


def costs(row: Row) -> list[str]:
    """Evaluations and time of a method."""
    return [f"{row[name]:.3g}" if row[name] is not None else "–" for name in ("evaluations", "ratio")]


STUDY = Study(
    title="All detectors",
    about="Every detector on the branches of the panel on which nothing was chosen, at four seeds and the testbed's "
    "own sixteen steps, in both families. Intervals resample clusters of related prompts.",
    page=page,
    measure=cases,
)
