"""The sections of model cards: an audit's, with metadata for the Hub, and the one on pictures that were removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unmemorize.core.errors import UserError
from unmemorize.core.plain import markdown, to_json
from unmemorize.report.prose import UNMITIGATED, plain_verdict
from unmemorize.report.schema import Run


def audit_card(run: Run) -> str:
    """The card of an audit. Its metadata is JSON, which is YAML too, so that no name can break out of it.

    Raises:
        UserError: The run does not say what it counted as a copy.
    """
    record = run.record
    criterion = record.criterion
    if criterion is None:
        raise UserError(f"{run.path / 'run.json'}: criterion: says nothing: restore the file or run the audit again")
    lines = ["---", to_json(_metadata(run), indent=1), "---", "", "## Memorization audit", ""]
    for head, text in plain_verdict(run):
        lines += [f"**{head}.** {markdown(text)}", ""]
    findings = []
    for finding in run.summary.findings:
        words = [markdown(finding.code), markdown(finding.title), finding.severity, finding.state]
        findings.append([*words, markdown(finding.evidence)])
    lines += _table(("code", "finding", "severity", "state", "evidence"), findings)
    rule = f"{criterion.name} at {criterion.threshold:g} ({criterion.recipe})"
    if criterion.error is not None:
        rule += f", which calls {criterion.error:.1%} of {criterion.measured_on} training pictures copies"
    fingerprint = markdown(record.model.get("fingerprint", "–"))
    lines += ["", f"Rule for a copy: {markdown(rule)}. Model fingerprint: {fingerprint}."]
    return "\n".join([*lines, ""])


def removal_card(
    own: str, settings: Mapping[str, Any], results: Mapping[str, Any], removed: Sequence[Mapping[str, str]]
) -> str:
    """The owner's card with a section on the pictures that were removed after it.

    Args:
        own: The card so far, which stays as it is; empty for none.
        settings: What was asked for.
        results: What was measured.
        removed: Hashes of every picture and caption; captions only where the owner asked for them.
    """
    quality = f"quality ({markdown(results['features'])})"
    lines = [
        "## Removed pictures",
        "",
        f"{results['pictures']} pictures were fine-tuned out of this model with unmemorize "
        f"({markdown(results['method'])}).",
        "",
        *_table(("generations that are copies", "share", "95% interval"), _copies(results)),
        "",
        f"The attack was DoRI with {results['attack_updates']} updates, with seeds that training did not use, from the "
        "caption's embedding and from random ones. A stronger attack may find more.",
        "",
        *_table((quality, "before", "after", "change"), _quality(results["quality"])),
        "",
        f"Training took {results['updates']} updates, {results['evaluations']} denoiser evaluations and "
        f"{results['seconds']} seconds.",
        "",
        "Settings:",
        "",
        "    " + to_json(dict(settings)),
        "",
        "SHA-256 of the pixels (as the model sees them) and captions that were removed:",
        "",
        *("    " + to_json(dict(row)) for row in removed),
    ]
    before = own.rstrip() + "\n\n" if own.strip() else "# Model card\n\n"
    return before + "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _copies(results: Mapping[str, Any]) -> list[list[str]]:
    """Copy rates for the captions, and after attacks by where they started."""
    rows = [
        _rate("with the original captions, before", results["copy_rate_before"]),
        _rate("with the original captions, after", results["copy_rate_after"]),
    ]
    for start, rate in results["attacked"].items():
        rows.append(_rate(f"after an embedding attack from {markdown(start)}", rate))
    return rows


def _rate(name: str, rate: Sequence[float]) -> list[str]:
    value, low, high = rate
    return [name, f"{value:.3f}", f"{low:.3f} to {high:.3f}"]


def _quality(quality: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for group, measures in quality.items():
        for name in ("kid", "fid", "alignment"):
            if name not in measures:
                continue
            before, after = measures[name]["before"][0], measures[name]["after"][0]
            change, low, high = measures[name]["change"]
            label = f"{name}, {measures['prompts']} {markdown(group)} prompts"
            rows.append([label, f"{before:.4g}", f"{after:.4g}", f"{change:+.1%} ({low:+.1%} to {high:+.1%})"])
    return rows


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
    summary = run.summary
    metrics = []
    if summary.images:
        share = summary.copied_images / summary.images
        metrics.append(_metric("copy_rate", "Generated pictures that are copies", share))
        metrics.append(_metric("copied_prompts", "Prompts with a copy", summary.copied_prompts))
    if summary.detector:
        metrics.append(_metric("auc", f"Area under ROC of {summary.detector.method}", summary.detector.auc.value))
    tested = [row for row in run.mitigations if row["name"] != UNMITIGATED and row["attack_knows_it"]]
    if tested:
        best = min(row["copy_rate_attacked"] for row in tested)
        metrics.append(_metric("copies_after_attack", "Copies under the best mitigation, after attack", best))
    return metrics or [_metric("prompts", "Prompts scored", summary.prompts)]


def _metric(kind: str, name: str, value: float) -> dict[str, Any]:
    return {"type": kind, "name": name, "value": round(value, 6)}
