"""Conditions on a run's numbers, for a build server: `copied_prompts > 0`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unmemorize.core.errors import UserError
from unmemorize.core.records import Finding
from unmemorize.core.shards import Row
from unmemorize.verdict.findings import CATALOGUE, UNMITIGATED

OPERATORS = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
NAMES = {
    "copied_prompts": "prompts with at least one copy",
    "copied_images": "generated pictures that are copies",
    "verbatim_images": "verbatim copies",
    "template_images": "copies of a template",
    "copy_rate": "share of generated pictures that are copies",
    "suspected_prompts": "prompts whose score false discovery control picks",
    "unverified_prompts": "suspected prompts whose pictures were not compared",
    "auc": "area under the detector's ROC curve",
    "text_auc": "the same from the prompts' text alone",
    "false_alarms": "share of ordinary prompts, set aside for this, that raise an alarm at a level of 5%",
    "copies_after_mitigation": "copy rate under the mitigation that leaves fewest copies",
    "copies_after_attack": "copy rate after an attack that knows the mitigation, under the one that leaves fewest",
    "issues": "findings in the state issue",
    "high_issues": "those of high severity",
    "inconclusive": "findings in the state inconclusive",
} | {entry.code: f"count of {entry.code}, {entry.title[0].lower()}{entry.title[1:]}" for entry in CATALOGUE}
_condition = re.compile(r"\s*(\w+)\s*(>=|<=|==|!=|>|<)\s*(-?\d{1,15}(?:\.\d{1,15})?)(%?)\s*")


@dataclass(frozen=True)
class Condition:
    """`name` compared with `bound`."""

    name: str
    sign: str
    bound: float

    def met(self, values: Mapping[str, float | None]) -> bool:
        """Whether it holds. A number that was not measured meets every condition: no run passes for lack of it."""
        value = values.get(self.name)
        return value is None or OPERATORS[self.sign](value, self.bound)

    def __str__(self) -> str:
        return f"{self.name} {self.sign} {self.bound:g}"

    def explain(self, values: Mapping[str, float | None]) -> str:
        """The condition and the number it was held against."""
        value = values.get(self.name)
        return f"{self}: {'not measured or not decided' if value is None else f'{value:g}'}"


def parse_conditions(texts: Sequence[str]) -> list[Condition]:
    """Conditions `NAME OP NUMBER`, several in one text apart by commas.

    Raises:
        UserError: A text is no condition, or its name is unknown.
    """
    parts = ",".join(texts).split(",")
    return [_parse(part) for part in parts if part.strip()]


def _parse(text: str) -> Condition:
    match = _condition.fullmatch(text)
    if match is None:
        raise UserError(f"--fail-on {text.strip()!r}: write NAME OP NUMBER, such as 'copied_prompts > 0'")
    name, sign, number, percent = match.groups()
    if name not in NAMES:
        raise UserError(f"--fail-on {name}: no such number: choose one of {', '.join(NAMES)}")
    return Condition(name, sign, float(number) / (100 if percent else 1))


def measures(summary: Row, findings: Sequence[Finding], tables: Mapping[str, Sequence[Row] | None]) -> Row:
    """The numbers that conditions can name; None is not measured or, of a code, not decided."""
    compared, calibration = summary["images"] > 0, summary["calibration"] or {}
    counts = ("copied_prompts", "copied_images", "verbatim_images", "template_images")
    mitigated = [row for row in tables["mitigations"] or () if row["name"] != UNMITIGATED]
    known = [row for row in mitigated if row.get("attack_knows_it")]
    issues = [f for f in findings if f.state == "issue"]
    return {
        **{name: summary[name] if compared else None for name in counts},
        "copy_rate": summary["copied_images"] / summary["images"] if compared else None,
        "suspected_prompts": calibration.get("suspected"),
        "unverified_prompts": calibration.get("unverified"),
        "auc": summary["detector"]["auc"]["value"] if summary["detector"] else None,
        "text_auc": summary["text_control"]["auc"]["value"] if summary["text_control"] else None,
        "false_alarms": calibration["alarms"]["value"] if calibration else None,
        "copies_after_mitigation": _lowest(mitigated, "copy_rate"),
        "copies_after_attack": _lowest(known, "copy_rate_attacked"),
        "issues": len(issues),
        "high_issues": sum(f.severity == "high" for f in issues),
        "inconclusive": sum(f.state == "inconclusive" for f in findings),
        **{f.code: f.count if f.state in ("issue", "passed") else None for f in findings},
    }


def _lowest(rows: Sequence[Row], column: str) -> float | None:
    return min((row[column] for row in rows if row.get(column) is not None), default=None)
