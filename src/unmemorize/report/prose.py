"""The verdict in words that need no knowledge of machine learning."""

from __future__ import annotations

from unmemorize.report.schema import Run

UNMITIGATED = "none"


def plain_verdict(run: Run) -> list[tuple[str, str]]:
    """A few headed sentences: what was tested, found, what it means, how sure, what was done, and what is not said."""
    return [
        ("What was tested", _tested(run)),
        ("What was found", _found(run)),
        ("What that means", _meaning(run)),
        ("How sure this is", _sure(run)),
        ("What was done about it", _done(run)),
        ("What this does not say", NOT_SAID),
    ]


NOT_SAID = (
    "Prompts and training pictures that were not in this test may still be reproduced. Whether a reproduction "
    "infringes a right, and whose, is a legal question that this measurement does not answer."
)


def _tested(run: Run) -> str:
    s = run.summary
    text = f"{_count(s.prompts, 'prompt was', 'prompts were')} scored."
    if not s.images:
        return f"{text} No generated picture was compared with a training picture."
    pictures = run.record.data.get("references")
    among = f"each of {pictures.count:,} training pictures" if pictures else "the training pictures"
    return (
        f"{text} {_count(s.generated_prompts, 'prompt was', 'prompts were')} given to the model as a user would, and "
        f"the {_count(s.images, 'resulting picture', 'resulting pictures')} compared with {among} under a rule "
        "that was fixed beforehand."
    )


def _found(run: Run) -> str:
    s = run.summary
    if not s.images:
        return "Scores only. A high score is a reason to look, not a copy."
    if not s.copied_images:
        return f"None of these pictures is a copy under that rule.{_limits(run)}"
    return (
        f"{_count(s.copied_images, 'picture is a copy', 'pictures are copies')} of a training picture, from "
        f"{_count(s.copied_prompts, 'prompt', 'prompts')}: {s.verbatim_images:,} of the whole picture, "
        f"{s.template_images:,} of its fixed part. Each is shown below beside the picture it copies."
    )


def _limits(run: Run) -> str:
    """What finding no copy rules out, where that is too little for a pass."""
    s = run.summary
    if s.verdict != "too little":
        return ""
    return (
        " That is too little to say that the model makes none: too few prompts or training pictures were compared, or "
        "not those that stand out. The sentence at the top of the page says what is missing."
    )


def _meaning(run: Run) -> str:
    s = run.summary
    if s.copied_images:
        return (
            "The model holds these pictures: whoever types such a prompt can receive the training picture, or most of "
            "it, without knowing that it exists."
        )
    if s.verdict == "too little":
        return "Nothing can be concluded about copies: the test was too small to find them."
    if s.images:
        return "In this test the model made no copies. That is evidence, not proof, that it makes none."
    return "Nothing can be concluded about copies."


def _sure(run: Run) -> str:
    s, parts = run.summary, []
    if s.copied_images:
        parts.append("A copy is a fact that can be checked by eye; it needs no statistics.")
    if s.calibration is not None:
        c = s.calibration
        parts.append(
            f"Of the {c.tested:,} prompts whose score was judged, {c.suspected:,} stand out from {c.ordinary:,} "
            f"ordinary prompts; {c.level:.0%} of those are expected to be false alarms. A check on ordinary prompts "
            f"that were set aside: {c.alarms.value:.1%} looked suspicious taken one by one, where {c.level:.0%} may."
        )
    found = next((row for row in s.nearness or [] if row.group == "all"), None)
    if found is not None:
        parts.append(
            f"{found.nearer:g} of {found.images:,} generated pictures are nearer to a training picture than to "
            f"comparable pictures the model was not trained on; chance would do that with probability "
            f"{'below 0.001' if found.p_value < 0.001 else f'{found.p_value:.3f}'}."
        )
    if s.calibration is None:
        reason = next((state.reason for state in s.states if state.name == "calibrate" and state.reason), "")
        parts.append("The scores were not calibrated in this run" + (f": {reason}." if reason else "."))
    return " ".join(parts)


def _done(run: Run) -> str:
    fixes = [row for row in run.mitigations if row["name"] != UNMITIGATED]
    if not fixes:
        return "No remedy was tried in this run."
    tried = f"{_count(len(fixes), 'remedy was', 'remedies were')} tried"
    known = [row for row in fixes if row["attack_knows_it"]]
    if not known:
        return f"{tried}, none of them against an attacker who knows of it: untested."
    parts = [f"{tried}."]
    unknown = [row["name"] for row in fixes if not row["attack_knows_it"]]
    if unknown:
        parts.append(f"Not attacked by one that knows of it, and so untested: {', '.join(unknown)}.")
    best = min(known, key=lambda row: row["copy_rate_attacked"])
    parts.append(
        f"Of those attacked, the one that holds best ({best['name']}) leaves copies in {best['copy_rate'] or 0:.0%} of "
        f"the pictures, and in {best['copy_rate_attacked']:.0%} once an attacker searches for them."
    )
    needed, pictures = run.summary.needed, best["pictures"]
    if needed and pictures is not None and pictures < needed:
        attacked = _count(pictures, "picture was", "pictures were")
        parts.append(f"{attacked} attacked: too few to clear a remedy, which takes {needed} without a copy.")
    return " ".join(parts)


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
