"""The section of a model card that says what was removed, how it was tested and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from unmemorize.core.methods import Method, settings
from unmemorize.core.plain import markdown, to_json

HEADING = "## Removed pictures"


def card(own: str, spec: Any, method: Method, results: dict[str, Any], removed: Sequence[dict[str, str]]) -> str:
    """The owner's card with the section after it.

    Args:
        own: The card so far, which stays as it is; empty for none.
        spec: What was asked for, a dataclass.
        method: The unlearner.
        results: What was measured.
        removed: Hashes of every picture and caption; captions only where the owner asked for them.
    """
    name = markdown(method.name)
    start = own.rstrip() + "\n\n" if own.strip() else "# Model card\n\n"
    facts = dataclasses.asdict(spec)
    given = {"method": method.name, **settings(method), "surrogates": facts["surrogates"]}
    lines = [
        HEADING,
        "",
        f"{results['pictures']} pictures were fine-tuned out of this model with unmemorize ({name}).",
        "",
        "| generations that are copies | share | 95% interval |",
        "| --- | --- | --- |",
        _row("with the original captions, before", results["copy_rate_before"]),
        _row("with the original captions, after", results["copy_rate_after"]),
        *(_row(f"after an embedding attack from {markdown(k)}", v) for k, v in results["attacked"].items()),
        "",
        f"The attack was DoRI with {facts['attack_updates']} updates, with seeds that training did not use, from the "
        "caption's embedding and from random ones. A stronger attack may find more.",
        "",
        f"| quality ({markdown(results['features'])}) | before | after | change |",
        "| --- | --- | --- | --- |",
        *_quality(results["quality"]),
        "",
        f"Training took {results['updates']} updates, {results['evaluations']} denoiser evaluations and "
        f"{results['seconds']} seconds.",
        "",
        "Settings:",
        "",
        "    " + to_json(given),
        "",
        "SHA-256 of the pixels (as the model sees them) and captions that were removed:",
        "",
        *("    " + to_json(row) for row in removed),
    ]
    return start + "\n".join(lines) + "\n"


def _row(name: str, rate: Sequence[float]) -> str:
    value, low, high = rate
    return f"| {name} | {value:.3f} | {low:.3f} to {high:.3f} |"


def _quality(quality: dict[str, Any]) -> list[str]:
    rows = []
    for group, measures in quality.items():
        for name in (name for name in ("kid", "fid", "alignment") if name in measures):
            parts = [measures[name][key] for key in ("before", "after", "change")]
            before, after, change = (part[0] for part in parts)
            low, high = parts[2][1:]
            shown = f"{before:.4g} | {after:.4g} | {change:+.1%} ({low:+.1%} to {high:+.1%})"
            rows.append(f"| {name}, {measures['prompts']} {markdown(group)} prompts | {shown} |")
    return rows
