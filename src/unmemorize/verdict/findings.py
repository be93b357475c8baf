"""The findings an audit can have, each with a code: what it is, how grave, on what evidence, and what to do.

Findings follow from a run's summary and tables alone. What was not run or does not apply is a state of its own and
never a pass. The codes are explained in docs/report.md, under an anchor of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = dict[str, Any]
State = Literal["passed", "issue", "not applicable", "not run"]
UNMITIGATED = "none"  # the row of the model as it came, among the mitigations
DOMINANT = 0.5  # share of a prompt's significance on one word, from which it is called its trigger


@dataclass(frozen=True)
class Finding:
    """One code's outcome in a run; `count` is of what `title` names."""

    code: str
    title: str
    severity: Literal["high", "medium", "low"]
    state: State
    count: int
    evidence: str
    advice: str
    docs: str


@dataclass(frozen=True)
class Facts:
    """A run's summary, prompts by id, and tables; a table is None where its stage was not run."""

    summary: Row
    texts: dict[str, str]
    explain: Sequence[Row] | None
    calibrated: Sequence[Row] | None
    verify: Sequence[Row] | None
    mitigations: Sequence[Row] | None

    @property
    def copied(self) -> set[str]:
        """Ids of prompts that gave a copy."""
        return {row["id"] for row in self.verify or () if row["verdict"] != "none"}

    @property
    def fixes(self) -> list[Row]:
        """The mitigations, without the model as it came."""
        return [row for row in self.mitigations or () if row["name"] != UNMITIGATED]


Outcome = tuple[State, int, str]


def _outcome(count: int, evidence: str) -> Outcome:
    return ("issue" if count else "passed"), count, evidence


def _copies(facts: Facts, verdict: str) -> Outcome:
    if facts.verify is None:
        return "not run", 0, "no generated picture was compared with training pictures"
    found = [row for row in facts.verify if row["verdict"] == verdict]
    prompts = len({row["id"] for row in found})
    return _outcome(prompts, f"{len(found)} of {len(facts.verify)} pictures, from {prompts} prompts")


def _triggers(facts: Facts) -> Outcome:
    if facts.explain is None:
        return "not run", 0, "no prompt's words were explained"
    rows = [row for row in facts.explain if row["id"] in facts.copied and len(row["significance"]) > 2]
    if not rows:
        return "not applicable", 0, "no prompt of three words or more that gave a copy was explained"
    words = [word for row in rows if (word := _dominant(facts.texts[row["id"]], row)) is not None]
    named = ", ".join(f"“{word}”" for word in list(dict.fromkeys(words))[:5])
    text = f"in {len(words)} of {len(rows)} explained prompts that gave a copy, one word carries most of it"
    return _outcome(len(words), f"{text}: {named}" if words else text)


def _dominant(text: str, row: Row) -> str | None:
    top = max(range(len(row["significance"])), key=row["significance"].__getitem__)
    share = row["significance"][top] / (sum(row["significance"]) or 1.0)
    return text[row["starts"][top] : row["stops"][top]] if share > DOMINANT else None


def _untried(facts: Facts, evidence: str) -> Outcome:
    if facts.verify is not None and not facts.copied:
        return "not applicable", 0, "nothing was copied"
    return "not run", 0, evidence


def _hidden(facts: Facts) -> Outcome:
    tested = [row for row in facts.fixes if row.get("copy_rate_attacked") is not None]
    if not tested:
        return _untried(facts, "no mitigation was attacked")
    hidden = [
        row
        for row in tested
        if row["copy_rate_attacked"] > row["copy_rate"] and row["copy_rate_attacked_low"] > row["control_rate_high"]
    ]
    rates = "; ".join(f"{r['name']}: {r['copy_rate']:.0%}, attacked {r['copy_rate_attacked']:.0%}" for r in hidden)
    return _outcome(len(hidden), rates or f"of {len(tested)} mitigations, attacked beside a control, none gave way")


def _untested(facts: Facts) -> Outcome:
    if not facts.fixes:
        return _untried(facts, "no mitigation was tried")
    names = [row["name"] for row in facts.fixes if row.get("copy_rate_attacked") is None]
    return _outcome(len(names), ", ".join(names) or f"all {len(facts.fixes)} mitigations were attacked")


def _attack_control(facts: Facts) -> Outcome:
    tested = [row for row in facts.fixes if row.get("control_rate") is not None]
    if not tested:
        return _untried(facts, "no attack was run on pictures that are not memorized")
    copied = [row for row in tested if row["control_rate"] > 0]
    high = [row for row in copied if row["control_rate_high"] >= row["copy_rate_attacked"] > 0]
    rates = "; ".join(f"{row['name']}: control {row['control_rate']:.0%}" for row in high)
    return _outcome(len(high), rates or "the attack brings back more memorized pictures than others")


def _unverified(facts: Facts) -> Outcome:
    if facts.calibrated is None or facts.summary["calibration"] is None:
        return "not run", 0, "the scores were not calibrated"
    found = facts.summary["calibration"]
    text = f"{found['unverified']} of {found['suspected']} suspected prompts were not compared with training pictures"
    return _outcome(found["unverified"], text)


def _missed(facts: Facts) -> Outcome:
    if facts.calibrated is None or facts.verify is None:
        return "not run", 0, "it takes calibrated scores and pictures that were compared"
    level = facts.summary["calibration"]["level"]
    missed = sum(row["p_value"] > level for row in facts.calibrated if row["id"] in facts.copied)
    return _outcome(missed, f"{missed} of {len(facts.copied)} prompts that gave a copy score as ordinary ones do")


def _text_control(facts: Facts) -> Outcome:
    detector, text = facts.summary["detector"], facts.summary["text_control"]
    if detector is None or text is None:
        return "not applicable", 0, "there are too few labelled prompts to train the control on"
    areas = f"area under ROC {text['auc']['value']:.2f} from text alone, {detector['auc']['value']:.2f} from the model"
    return _outcome(int(text["auc"]["high"] >= detector["auc"]["low"]), areas)


def _alarms(facts: Facts) -> Outcome:
    found = facts.summary["calibration"]
    if found is None:
        return "not run", 0, "the scores were not calibrated"
    alarms, level = found["alarms"], found["level"]
    text = f"{alarms['value']:.1%} [{alarms['low']:.1%}, {alarms['high']:.1%}] of fresh ordinary prompts at {level:.0%}"
    return _outcome(int(alarms["low"] > level), text)


def _nearer(facts: Facts) -> Outcome:
    groups = {row["group"]: row for row in facts.summary["nearness"] or ()}
    if "all" not in groups:
        return "not run", 0, "no generated picture was compared with training and held-out pictures"
    found = groups["all"]
    text = f"{found['nearer']:g} of {found['images']} are nearer to a training picture, p = {found['p_value']:.2g}"
    control = groups.get("ordinary prompts")
    if control is not None:
        text += f"; of ordinary prompts {control['nearer']:g} of {control['images']}, p = {control['p_value']:.2g}"
    return _outcome(int(found["p_value"] <= 0.05), text)


@dataclass(frozen=True)
class Code:
    """An entry of the catalogue; `check` says what a run shows of it."""

    code: str
    title: str
    severity: Literal["high", "medium", "low"]
    advice: str
    check: Callable[[Facts], Outcome]


CATALOGUE = (
    Code(
        "UM001",
        "Prompts that give verbatim copies",
        "high",
        "Do not release this checkpoint as it is. Drop the duplicates of these pictures and train again, or apply a "
        "mitigation and audit it with the attack.",
        lambda facts: _copies(facts, "verbatim"),
    ),
    Code(
        "UM002",
        "Prompts that give copies of a template",
        "high",
        "Look at the fixed part: a logo, layout or person is often protected by itself. Deduplicate the series.",
        lambda facts: _copies(facts, "template"),
    ),
    Code(
        "UM003",
        "Prompts in which one word triggers the copy",
        "medium",
        "Caption these pictures anew without the word, or take it out of prompts at inference.",
        _triggers,
    ),
    Code(
        "UM004",
        "Mitigations that hide copies an attack brings back",
        "high",
        "The weights still hold the pictures. Do not call them removed; fine-tune or train again.",
        _hidden,
    ),
    Code(
        "UM005",
        "Mitigations that were not attacked",
        "medium",
        "A fix that was only tested with the original prompt is untested. Run the attack.",
        _untested,
    ),
    Code(
        "UM006",
        "Attacks that do as well on their control",
        "medium",
        "An attack that draws any picture proves no memory. Compare at fewer steps.",
        _attack_control,
    ),
    Code(
        "UM007",
        "Suspected prompts that were not verified",
        "medium",
        "Generate more prompts (--generate, --plan full) and give the training pictures (--images).",
        _unverified,
    ),
    Code(
        "UM008",
        "Prompts that give copies though their score is ordinary",
        "medium",
        "The score alone does not clear a prompt: generate and compare more of the list.",
        _missed,
    ),
    Code(
        "UM009",
        "Text alone separates the labels",
        "low",
        "Do not quote the detector's accuracy: memorized and ordinary prompts differ in their words. Match them.",
        _text_control,
    ),
    Code(
        "UM010",
        "More false alarms than promised",
        "low",
        "The ordinary prompts differ among themselves. Give more of them, like the audited ones, with --ordinary.",
        _alarms,
    ),
    Code(
        "UM011",
        "Generated pictures are nearer to training pictures than to held-out ones",
        "low",
        "A trace of the training set, where the control shows none. See which prompts in the table.",
        _nearer,
    ),
)


def find(facts: Facts) -> list[Finding]:
    """Every code of the catalogue with its state in this run."""
    found = []
    for entry in CATALOGUE:
        state, count, evidence = entry.check(facts)
        docs = f"docs/report.md#{entry.code.lower()}"
        found.append(Finding(entry.code, entry.title, entry.severity, state, count, evidence, entry.advice, docs))
    return found
