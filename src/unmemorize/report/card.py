"""A model card section for the Hub: Markdown under metadata in its model-index form."""

from __future__ import annotations

from typing import Any

from unmemorize.core.plain import markdown, to_json
from unmemorize.report.prose import UNMITIGATED, plain_verdict
from unmemorize.report.schema import Run


def model_card(run: Run) -> str:
    """The card of a run. Its metadata is JSON, which is YAML too, so that no name can break out of it."""
    lines = ["---", to_json(_metadata(run), indent=1), "---", "", "## Memorization audit", ""]
    for head, text in plain_verdict(run):
        lines += [f"**{head}.** {markdown(text)}", ""]
    lines += ["| code | finding | severity | state | evidence |", "|---|---|---|---|---|"]
    for f in run.summary.findings:
        lines.append(
            f"| {markdown(f.code)} | {markdown(f.title)} | {f.severity} | {f.state} | {markdown(f.evidence)} |"
        )
    record = run.record
    rule = f"{record.criterion.name} at {record.criterion.threshold:g} ({record.criterion.recipe})"
    if record.criterion.error is not None:
        rule += f", which calls {record.criterion.error:.1%} of {record.criterion.measured_on} training pictures copies"
    fingerprint = markdown(record.model.get("fingerprint", "–"))
    lines += ["", f"Rule for a copy: {markdown(rule)}. Model fingerprint: {fingerprint}."]
    return "\n".join([*lines, ""])


def _metadata(run: Run) -> dict[str, Any]:
    name = run.record.model.get("name", "model")
    prompts = run.record.data.get("prompts")
    dataset = {"name": prompts.source if prompts else "prompts", "type": "prompts"}
    result = {
        "task": {"type": "text-to-image"},
        "dataset": dataset | ({"revision": prompts.sha256} if prompts else {}),
        "metrics": _metrics(run),
    }
    return {"tags": ["memorization-audit"], "model-index": [{"name": name, "results": [result]}]}


def _metrics(run: Run) -> list[dict[str, Any]]:
    s, found = run.summary, []
    if s.images:
        found.append(_metric("copy_rate", "Generated pictures that are copies", s.copied_images / s.images))
        found.append(_metric("copied_prompts", "Prompts with a copy", s.copied_prompts))
    if s.detector:
        found.append(_metric("auc", f"Area under ROC of {s.detector.method}", s.detector.auc.value))
    fixes = [row for row in run.mitigations if row["name"] != UNMITIGATED]
    attacked = [row["copy_rate_attacked"] for row in fixes if row["attack_knows_it"]]
    if attacked:
        found.append(_metric("copies_after_attack", "Copies under the best mitigation, after attack", min(attacked)))
    return found or [_metric("prompts", "Prompts scored", s.prompts)]


def _metric(kind: str, name: str, value: float) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": round(value, 6)}
