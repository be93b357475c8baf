"""The findings an audit can have, each with a code: what it is, how grave, on what evidence, and what to do.

Findings follow from a run's summary and tables alone. A finding passes only on evidence: where it is a rate, its upper
95% limit lies within the run's bound. Too little evidence is *inconclusive*; what was not run or does not apply is a
state of its own. The codes are explained in docs/report.md, under an anchor of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unmemorize.core.records import Finding, State
from unmemorize.core.shards import Row
from unmemorize.metrics.discovery import benjamini_hochberg
from unmemorize.metrics.exact import above, interval, more_often, units_to_decide

UNMITIGATED = "none"  # the row of the model as it came, among the mitigations
NAMED = 5  # words that a finding names
LEVEL = 0.05  # of every test


@dataclass(frozen=True)
class Facts:
    """A run's summary, prompts by id, and tables; a table is None where its stage was not run.

    Of the summary it takes `bound`, `references` and `templates` (training pictures, and those among them whose varying
    part is known; None where the copy criterion has no verdict on templates), `generated_prompts`, `states`,
    `detector`, `text_control`, `calibration` and `nearness`.
    """

    summary: Row
    texts: dict[str, str]
    explain: Sequence[Row] | None
    calibrated: Sequence[Row] | None
    verify: Sequence[Row] | None
    mitigations: Sequence[Row] | None

    @property
    def bound(self) -> float:
        """The rate that a pass has to rule out."""
        bound: float = self.summary["bound"]
        return bound

    @property
    def copied(self) -> set[str]:
        """Ids of prompts that gave a copy."""
        return {row["id"] for row in self.verify or () if row["verdict"] != "none"}

    @property
    def fixes(self) -> list[Row]:
        """The mitigations, without the model as it came."""
        return [row for row in self.mitigations or () if row["name"] != UNMITIGATED]

    @property
    def attacked(self) -> list[Row]:
        """Those that were attacked, also by an attack that does not know them."""
        return [row for row in self.fixes if row.get("copy_rate_attacked") is not None]


Outcome = tuple[State, int, str]


def _without_hit(facts: Facts, units: int, unit: str, evidence: str) -> Outcome:
    """No hit among so many units: passed if a rate above the bound is ruled out, else inconclusive."""
    limit = interval(0, units).high
    counted = f"{evidence}: 0 of {units} {unit} [0%, {limit:.0%}]"
    if limit <= facts.bound:
        return "passed", 0, counted
    return "inconclusive", 0, f"{counted}; {_needed(facts.bound, unit)}"


def _needed(bound: float, unit: str) -> str:
    needed = units_to_decide(bound)
    return f"too few to rule out {bound:.0%}" + (f", which takes 0 of {needed} {unit}" if needed else "")


def _copies(facts: Facts, verdict: str) -> Outcome:
    if facts.verify is None:
        return "not run", 0, "no generated picture was compared with training pictures"
    copies = [row for row in facts.verify if row["verdict"] == verdict]
    prompts = len({row["id"] for row in copies})
    if copies:
        return "issue", prompts, f"{len(copies)} of {len(facts.verify)} pictures, from {prompts} prompts"
    generated = len({row["id"] for row in facts.verify})
    return _without_hit(facts, generated, "prompts", f"none of {len(facts.verify)} pictures")


def _templates(facts: Facts) -> Outcome:
    if facts.verify is not None and facts.summary["templates"] is None:
        return "not applicable", 0, "the copy criterion has no verdict on templates"
    if facts.verify is not None and not facts.summary["templates"]:
        return "not applicable", 0, "no training picture has a mask of the part that varies"
    return _copies(facts, "template")


def _triggers(facts: Facts) -> Outcome:
    if facts.explain is None:
        return "not run", 0, "no prompt's words were explained"
    rows = [row for row in facts.explain if row.get("omitted") is not None and row["copies_with"]]
    if not rows:
        return "not applicable", 0, "no prompt of two words or more that gave a copy was explained"
    stopped = [row for row in rows if not row["copies_without"]]
    significant = _beyond_chance(rows)
    tried = f"one word tried of each of {len(rows)} prompts, its most significant; {_special_tokens(rows)}"
    if significant:
        words = "; ".join(_counterfactual(facts, row) for row in significant[:NAMED])
        more = f" and {len(significant) - NAMED} more" if len(significant) > NAMED else ""
        return "issue", len(significant), f"{words}{more}; {tried}"
    if stopped:
        words = "; ".join(_counterfactual(facts, row) for row in stopped[:NAMED])
        return "inconclusive", 0, f"{words}: too few pictures for so many prompts to rule out chance; {tried}"
    return _without_hit(facts, len(rows), "prompts", f"{tried}; prompts whose copies stop without it")


def _beyond_chance(rows: Sequence[Row]) -> list[Row]:
    """Prompts that give no copy without their word, after Benjamini and Hochberg's correction for all prompts tried."""
    p_values = []
    for row in rows:
        p_values.append(more_often(row["copies_with"], row["pictures"], row["copies_without"], row["pictures"]))
    adjusted = benjamini_hochberg(np.array(p_values))
    return [row for row, q in zip(rows, adjusted, strict=True) if q <= LEVEL and not row["copies_without"]]


def _counterfactual(facts: Facts, row: Row) -> str:
    """The word, and how many pictures are copies with it and without it."""
    word = facts.texts[row["id"]][row["starts"][row["omitted"]] : row["stops"][row["omitted"]]]
    counts = f"{row['copies_with']} of {row['pictures']} pictures copied with it, {row['copies_without']} of"
    return f"“{word}”: {counts} {row['pictures']} without"


def _special_tokens(rows: Sequence[Row]) -> str:
    """The shares of all significance that fall on the begin, end and padding tokens."""
    names = ("begin", "end", "padding")
    sums = dict.fromkeys(names, 0.0)
    total = 0.0
    for row in rows:
        if any(row.get(name) is None for name in names):
            return "this explainer gives no values for the begin, end and padding tokens"
        total += sum(row["significance"]) + sum(row[name] for name in names)
        for name in names:
            sums[name] += row[name]
    shares = [f"{value / (total or 1.0):.0%} on {name} tokens" for name, value in sums.items()]
    return "of all significance " + ", ".join(shares)


def _untried(facts: Facts, evidence: str) -> Outcome:
    if facts.verify is not None and not facts.copied:
        return "not applicable", 0, "nothing was copied"
    return "not run", 0, evidence


def _copies_left(facts: Facts) -> Outcome:
    if not facts.fixes:
        return _untried(facts, "no mitigation was tried")
    leaving = [row for row in facts.fixes if row["pictures_copied"]]
    if leaving:
        return "issue", len(leaving), "; ".join(f"{row['name']}: {_copies_left_by(row)}" for row in leaving)
    fewest = min(row["pictures"] for row in facts.fixes)
    return _without_hit(facts, fewest, "pictures", "the prompts that gave copies give none any more")


def _copies_left_by(row: Row) -> str:
    return f"{row['pictures_copied']} of {row['pictures']} pictures, {row['copy_rate']:.0%} of those generated"


def _hidden(facts: Facts) -> Outcome:
    if not facts.attacked:
        return _untried(facts, "no mitigation was attacked")
    hidden = [row for row in facts.attacked if row["copy_rate_attacked"] > row["copy_rate"] and _excess(row) <= LEVEL]
    if hidden:
        return "issue", len(hidden), "; ".join(_beside_control(row) for row in hidden)
    known = [row for row in facts.attacked if row["attack_knows_it"]]
    if not known:
        return "not run", 0, "no mitigation was attacked by an attack that knows it"
    limits, counts = [], []
    for row in known:
        copied, pictures = row["pictures_copied_attacked"], row["pictures"]
        limit = interval(copied / pictures, pictures)
        limits.append(limit.high)
        counted = f"{copied} of {pictures} pictures [{limit.low:.0%}, {limit.high:.0%}]"
        counts.append(f"{row['name']}: after the attack {counted}")
    evidence = "; ".join(counts)
    if max(limits) <= facts.bound:
        return "passed", 0, evidence
    return "inconclusive", 0, f"{evidence}; {_needed(facts.bound, 'pictures')}"


def _excess(row: Row) -> float:
    """p-value that an attack brings back more memorized pictures than of its control."""
    counts = row["pictures_copied_attacked"], row["pictures"], row["control_pictures_copied"], row["control_pictures"]
    return more_often(*counts)


def _beside_control(row: Row) -> str:
    return (
        f"{row['name']}: copies {row['copy_rate']:.0%}, attacked {row['copy_rate_attacked']:.0%}, in "
        f"{row['pictures_copied_attacked']} of {row['pictures']} pictures; of the control {_control(row)}, "
        f"p = {_excess(row):.2g}"
    )


def _control(row: Row) -> str:
    return f"{row['control_pictures_copied']} of {row['control_pictures']}"


def _untested(facts: Facts) -> Outcome:
    if not facts.fixes:
        return _untried(facts, "no mitigation was tried")
    untested = [f"{row['name']}: not attacked" for row in facts.fixes if row not in facts.attacked]
    for row in facts.attacked:
        if not row["attack_knows_it"]:
            untested.append(f"{row['name']}: not attacked by one that knows it")
    if untested:
        return "issue", len(untested), "; ".join(untested)
    return "passed", 0, f"all {len(facts.fixes)} mitigations were attacked by an attack that knows them"


def _attack_control(facts: Facts) -> Outcome:
    if not facts.attacked:
        return _untried(facts, "no attack was run on pictures that are not memorized")
    unclear = [row for row in facts.attacked if _excess(row) > LEVEL]
    drawn = []  # attacks that bring back control pictures more often than the bound allows
    for row in unclear:
        if above(row["control_pictures_copied"], row["control_pictures"], facts.bound) <= LEVEL:
            drawn.append(row)
    if drawn:
        return "issue", len(drawn), "; ".join(_beside_control(row) for row in drawn)
    limits = {row["name"]: interval(_share(row), row["control_pictures"]).high for row in unclear}
    wide = [row for row in unclear if limits[row["name"]] > facts.bound]
    if not wide:
        return "passed", 0, "the attack brings back more memorized than control pictures, or hardly any of the control"
    counted = "; ".join(f"{row['name']}: control {_control(row)} [up to {limits[row['name']]:.0%}]" for row in wide)
    return (
        "inconclusive",
        0,
        f"no more memorized pictures come back than control pictures; {counted}; "
        + _needed(facts.bound, "pictures of the control"),
    )


def _share(row: Row) -> float:
    share: float = row["control_pictures_copied"] / row["control_pictures"]
    return share


def _uncalibrated(facts: Facts) -> Outcome:
    reason = next((row["reason"] for row in facts.summary["states"] if row["name"] == "calibrate"), "")
    return "not run", 0, "the scores were not calibrated" + (f": {reason}" if reason else "")


def _unverified(facts: Facts) -> Outcome:
    calibration = facts.summary["calibration"]
    if facts.calibrated is None or calibration is None:
        return _uncalibrated(facts)
    suspected, unverified = calibration["suspected"], calibration["unverified"]
    if not suspected:
        return "not applicable", 0, f"no prompt of {len(facts.calibrated)} is suspected"
    text = f"{unverified} of {suspected} suspected prompts were not compared with training pictures"
    if unverified:
        return "issue", unverified, text
    if facts.summary["references"] < suspected:
        return "inconclusive", 0, f"{text}; training pictures to compare with: {facts.summary['references']}"
    return "passed", 0, text


def _missed(facts: Facts) -> Outcome:
    if facts.calibrated is None:
        return _uncalibrated(facts)
    if facts.verify is None:
        return "not run", 0, "no generated picture was compared with training pictures"
    judged = [row for row in facts.calibrated if row["id"] in facts.copied]
    if not judged:
        return "not applicable", 0, "no prompt with a p-value gave a copy"
    level = facts.summary["calibration"]["level"]
    missed = sum(row["p_value"] > level for row in judged)
    if missed:
        return "issue", missed, f"{missed} of {len(judged)} prompts that gave a copy have an ordinary score"
    return _without_hit(facts, len(judged), "prompts that gave a copy", "none has an ordinary score")


def _text_control(facts: Facts) -> Outcome:
    detector, text = facts.summary["detector"], facts.summary["text_control"]
    if detector is None or text is None:
        return "not applicable", 0, "there are too few labelled prompts to train the control on"
    areas = f"area under ROC {_area(text)} from text alone, {_area(detector)} from the model"
    if text["auc"]["high"] < detector["auc"]["low"]:
        return "passed", 0, areas
    if text["auc"]["low"] > 0.5:
        return "issue", 1, areas
    return "inconclusive", 0, f"{areas}: the intervals overlap, and that of text alone contains 0.5"


def _area(measured: Row) -> str:
    auc = measured["auc"]
    return f"{auc['value']:.2f} [{auc['low']:.2f}, {auc['high']:.2f}]"


def _alarms(facts: Facts) -> Outcome:
    calibration = facts.summary["calibration"]
    if calibration is None:
        return _uncalibrated(facts)
    alarms, level = calibration["alarms"], calibration["level"]
    rate = f"{alarms['value']:.1%} [{alarms['low']:.1%}, {alarms['high']:.1%}]"
    text = f"{rate} of ordinary prompts that were set aside raise an alarm at a level of {level:.0%}"
    if alarms["low"] > level:
        return "issue", 1, text
    if alarms["high"] <= facts.bound:
        return "passed", 0, text
    needed = units_to_decide(facts.bound, level)
    more = f", which takes about {needed} unrelated ordinary prompts" if needed else ""
    return "inconclusive", 0, f"{text}; too few to rule out {facts.bound:.0%}{more}"


def _nearer(facts: Facts) -> Outcome:
    groups = {row["group"]: row for row in facts.summary["nearness"] or ()}
    if "all" not in groups:
        return "not run", 0, "no generated picture was compared with training and held-out pictures"
    every = groups["all"]
    text = f"{every['nearer']:g} of {every['images']} are nearer to a training picture, p = {every['p_value']:.2g}"
    control = groups.get("ordinary prompts")
    if control is not None:
        text += f"; of ordinary prompts {control['nearer']:g} of {control['images']}, p = {control['p_value']:.2g}"
    if every["p_value"] <= LEVEL:
        return "issue", 1, text
    # By chance half of the pictures are nearer: if the model knows a share b of them, (1 + b) / 2 are.
    limit = interval(every["nearer"] / every["images"], facts.summary["generated_prompts"]).high
    if limit <= (1 + facts.bound) / 2:
        return "passed", 0, text
    needed = units_to_decide((1 + facts.bound) / 2, 0.5)
    more = f", which takes about {needed} prompts" if needed else ""
    return "inconclusive", 0, f"{text}; too few to rule out that the model knows {facts.bound:.0%} of them{more}"


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
        _templates,
    ),
    Code(
        "UM003",
        "Prompts that give no copy without one of their words",
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
        "A fix that was only tested with the original prompt, or by an attack that searches the model without it, is "
        "untested. Run an attack that knows it.",
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
        "Generate more prompts (--generate, --plan full) and give the training pictures (--references).",
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
        "Unless the control shows the same, generated pictures carry a trace of the training set. The table shows from "
        "which prompts.",
        _nearer,
    ),
    Code(
        "UM012",
        "Mitigations that leave copies",
        "high",
        "The prompts that gave copies still do. Mitigate more strongly, or train again without the duplicates.",
        _copies_left,
    ),
)


def find(facts: Facts) -> list[Finding]:
    """Every code of the catalogue with its state in this run."""
    findings = []
    for entry in CATALOGUE:
        state, count, evidence = entry.check(facts)
        docs = f"docs/report.md#{entry.code.lower()}"
        findings.append(Finding(entry.code, entry.title, entry.severity, state, count, evidence, entry.advice, docs))
    return findings
