"""What an audit's rows add up to: counts, rates with intervals, and a sentence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.plain import from_json
from unmemorize.core.records import Finding
from unmemorize.core.shards import Row
from unmemorize.core.specs import BOUND
from unmemorize.data.source import Prompt, clusters_of
from unmemorize.metrics import ranking
from unmemorize.metrics.exact import interval, units_to_decide
from unmemorize.verdict.conditions import measures
from unmemorize.verdict.findings import Facts, find

TABLES = ("verify", "calibrated", "nearness", "explain", "mitigations")


@dataclass(frozen=True)
class Basis:
    """What a verdict rests on.

    Attributes:
        bound: The upper 95% limit of a rate up to which a finding passes.
        references: Training pictures that generated ones were compared with.
        templates: Those among them whose varying part is known; None where the criterion has no verdict on templates.
        criterion: What counts as a copy; its error rate is said beside every verdict where it was measured.
    """

    bound: float = BOUND
    references: int = 0
    templates: int | None = None
    criterion: Criterion | None = None


def summarise(
    run: Path, prompts: Sequence[Prompt], scores: np.ndarray, states: Sequence[Row], costs: Row, basis: Basis
) -> Row:
    """The summary of an audit, as written to `summary.json`, from the tables in its run directory.

    Args:
        run: The run directory.
        prompts: All prompts.
        scores: Detector scores (prompts, seeds).
        states: What became of each stage.
        costs: Denoiser evaluations per stage.
        basis: What the generated pictures were compared with, and what a pass has to rule out.
    """
    tables = {name: _rows(run, name) for name in TABLES}
    matches = tables["verify"]
    by_prompt = _by_prompt(matches or [])
    counts = {
        "bound": basis.bound,
        "references": basis.references,
        "templates": basis.templates,
        "needed": units_to_decide(basis.bound),
        **_counts(prompts, matches, by_prompt),
        **_ranking(run, prompts, scores, by_prompt),
        "calibration": _calibration(run, tables["calibrated"], by_prompt),
        "nearness": tables["nearness"],
        "dose": _dose(prompts, by_prompt),
        "states": list(states),
        "evaluations": costs,
    }
    texts = {p.id: p.text for p in prompts}
    findings = find(Facts(counts, texts, tables["explain"], tables["calibrated"], matches, tables["mitigations"]))
    summary = _verdict(counts, findings) | counts
    if basis.criterion is not None and counts["images"]:
        summary["sentence"] = " ".join(filter(None, [summary["sentence"], basis.criterion.said_of_errors]))
    return summary | {"findings": [asdict(f) for f in findings], "measures": measures(summary, findings, tables)}


def _rows(run: Path, name: str) -> list[Row] | None:
    path = run / "scores" / f"{name}.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else None


def _calibration(run: Path, calibrated: list[Row] | None, by_prompt: dict[str, list[bool]]) -> Row | None:
    if calibrated is None:
        return None
    facts = _facts(run / "calibration.json")
    suspected = [row["id"] for row in calibrated if row["q_value"] <= facts["level"]]
    return facts | {"suspected": len(suspected), "unverified": sum(i not in by_prompt for i in suspected)}


def _facts(path: Path) -> Row:
    """Read the facts that a stage wrote beside its table.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        facts: Row = from_json(path.read_bytes())
        whole = isinstance(facts["level"], int | float)
    except (OSError, ValueError, LookupError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path}: damaged: delete scores/calibrated.parquet and start the same command again")
    return facts


def _by_prompt(matches: Sequence[Row]) -> dict[str, list[bool]]:
    """Which pictures of each prompt are copies."""
    by_prompt: dict[str, list[bool]] = defaultdict(list)
    for row in matches:
        by_prompt[row["id"]].append(row["verdict"] != "none")
    return by_prompt


def _counts(prompts: Sequence[Prompt], matches: list[Row] | None, by_prompt: dict[str, list[bool]]) -> Row:
    rows = matches or []
    verdicts = [row["verdict"] for row in rows]
    copied = sum(any(v) for v in by_prompt.values())
    return {
        "prompts": len(prompts),
        "generated_prompts": len(by_prompt),
        "images": len(rows),
        "copied_prompts": copied,
        "copied_images": len(rows) - verdicts.count("none"),
        "verbatim_images": verdicts.count("verbatim"),
        "template_images": verdicts.count("template"),
    }


def _verdict(counts: Row, findings: Sequence[Finding]) -> Row:
    """The run's verdict, and the sentence that says it."""
    if not counts["images"]:
        sentence = "Scored, but not compared with training pictures: a high score is a suspicion, not a copy."
        return {"verdict": "untested", "sentence": sentence}
    tested = f"{counts['images']} pictures generated from {counts['generated_prompts']} of {counts['prompts']} prompts"
    if counts["copied_prompts"]:
        kinds = f"{counts['verbatim_images']} verbatim, {counts['template_images']} of a template"
        sentence = (
            f"This model reproduces training pictures: {counts['copied_images']} of {tested} are copies ({kinds}), "
            f"from {counts['copied_prompts']} prompts."
        )
        return {"verdict": "issue", "sentence": sentence}
    limit = interval(0, counts["generated_prompts"]).high
    sentence = (
        f"No copies of the {_pictures(counts['references'])} were found among {tested}: up to {limit:.0%} of such "
        "prompts may still give one (95% limit)."
    )
    if reasons := _doubts(counts, findings, limit):
        return {"verdict": "too little", "sentence": " ".join(["Too little to say.", sentence, *reasons])}
    return {"verdict": "passed", "sentence": f"{sentence} Prompts that were not generated were scored only."}


def _doubts(counts: Row, findings: Sequence[Finding], limit: float) -> list[str]:
    """Why a run without a copy does not pass; `limit` is the rate of copies that it leaves possible."""
    reasons = []
    if limit > counts["bound"]:
        needed = f"{counts['needed']} prompts without one" if counts["needed"] else "more"
        reasons.append(f"To rule out {counts['bound']:.0%} takes {needed}.")
    state = {finding.code: finding.state for finding in findings}
    if state["UM007"] in ("issue", "inconclusive"):
        suspected, unverified = counts["calibration"]["suspected"], counts["calibration"]["unverified"]
        reasons.append(f"{suspected} prompts stand out from ordinary ones; {unverified} of them were not compared.")
    return reasons


def _pictures(count: int) -> str:
    return f"{count} training picture{'' if count == 1 else 's'}"


def _ranking(run: Path, prompts: Sequence[Prompt], scores: np.ndarray, by_prompt: dict[str, list[bool]]) -> Row:
    truth, label = _truth(prompts, by_prompt)
    rows = [i for i, prompt in enumerate(prompts) if prompt.id in truth]
    labelled = [prompts[i] for i in rows]
    positive = np.array([truth[prompt.id] for prompt in labelled], dtype=bool)
    texts = [prompt.text for prompt in labelled]
    mean = scores.mean(axis=1)[rows]
    try:
        clusters = clusters_of(labelled)
        area = ranking.cluster_bootstrap(ranking.auc, mean, positive, clusters)
        tpr = ranking.cluster_bootstrap(ranking.tpr_at_fpr, mean, positive, clusters)
    except NotApplicable:
        return {"detector": None, "text_control": None, "roc": None}
    counts = {"positives": int(positive.sum()), "negatives": int((~positive).sum())}
    method = pq.read_table(run / "scores" / "detect.parquet")["method"][0].as_py()  # the first is what ranks
    detector = {
        "method": method,
        "label": label,
        **counts,
        "auc": asdict(area),
        "tpr": {"fpr": 0.01} | asdict(tpr),
    }
    false, true = ranking.roc(mean, positive)
    curve = {"fpr": false.tolist(), "tpr": true.tolist()}
    return {"detector": detector, "text_control": _text_control(texts, positive, clusters), "roc": curve}


def _truth(prompts: Sequence[Prompt], by_prompt: dict[str, list[bool]]) -> tuple[dict[str, bool], str]:
    planted = {p.id: p.memorable for p in prompts if p.memorable is not None}
    if planted:
        return planted, "planted in training, known from the plan"
    copied = {key: any(copies) for key, copies in by_prompt.items()}
    return copied, "gave a copy when generated, among prompts partly picked by their score"


def _text_control(texts: Sequence[str], positive: np.ndarray, clusters: Sequence[str]) -> Row | None:
    try:
        values = ranking.text_scores(texts, positive, clusters)
    except NotApplicable:
        return None
    return {"auc": asdict(ranking.cluster_bootstrap(ranking.auc, values, positive, clusters))}


def _dose(prompts: Sequence[Prompt], by_prompt: dict[str, list[bool]]) -> list[Row] | None:
    rungs: dict[int, list[Prompt]] = defaultdict(list)
    for p in prompts:
        if p.kind == "verbatim" and p.copies is not None and p.id in by_prompt:
            rungs[p.copies].append(p)
    return [_rung(copies, rung, by_prompt) for copies, rung in sorted(rungs.items())] or None


def _rung(copies: int, prompts: Sequence[Prompt], by_prompt: dict[str, list[bool]]) -> Row:
    hits = [sum(by_prompt[p.id]) for p in prompts]
    trials = [len(by_prompt[p.id]) for p in prompts]
    rate = ranking.rate_interval(hits, trials, clusters_of(prompts))
    counts = {"copies": copies, "pictures": len(prompts), "images": sum(trials), "copied": sum(hits)}
    return counts | {"copy_rate": rate.value, "low": rate.low, "high": rate.high}
