"""The verdict in words that need no knowledge of machine learning."""

from __future__ import annotations

from unmemorize.report.schema import Run

UNMITIGATED = "none"


def plain_verdict(run: Run) -> list[tuple[str, str]]:
    """A few headed sentences: what was tested, found, what it means, how sure, what was done, and what is not said."""
    return [
        ("What was tested", _tested(run)),
        ("What was found", _copies(run)),
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
    summary = run.summary
    text = f"{_count(summary.prompts, 'prompt was', 'prompts were')} scored."
    if not summary.images:
        return f"{text} No generated picture was compared with a training picture."
    pictures = run.record.data.get("references")
    among = f"each of {pictures.count:,} training pictures" if pictures else "the training pictures"
    prompts = _count(summary.generated_prompts, "prompt was", "prompts were")
    images = _count(summary.images, "resulting picture", "resulting pictures")
    return (
        f"{text} {prompts} given to the model as a user would, and the {images} compared with {among} under a rule "
        "that was fixed beforehand."
    )


def _copies(run: Run) -> str:
    summary = run.summary
    if not summary.images:
        return "Scores only. A high score is a reason to look, not a copy."
    if not summary.copied_images:
        return f"None of these pictures is a copy under that rule.{_limits(run)}"
    return (
        f"{_count(summary.copied_images, 'picture is a copy', 'pictures are copies')} of a training picture, from "
        f"{_count(summary.copied_prompts, 'prompt', 'prompts')}: {summary.verbatim_images:,} of the whole picture, "
        f"{summary.template_images:,} of its fixed part. Each is shown below beside the picture it copies."
    )


def _limits(run: Run) -> str:
    """What finding no copy rules out, where that is too little for a pass."""
    summary = run.summary
    if summary.verdict != "too little":
        return ""
    return (
        " That is too little to say that the model makes none: too few prompts or training pictures were compared, or "
        "not those that stand out. The sentence at the top of the page says what is missing."
    )


def _meaning(run: Run) -> str:
    summary = run.summary
    if summary.copied_images:
        return (
            "The model holds these pictures: whoever types such a prompt can receive the training picture, or most of "
            "it, without knowing that it exists."
        )
    if summary.verdict == "too little":
        return "Nothing can be concluded about copies: the test was too small to find them."
    if summary.images:
        return "In this test the model made no copies. That is evidence, not proof, that it makes none."
    return "Nothing can be concluded about copies."


def _sure(run: Run) -> str:
    summary = run.summary
    parts = []
    if summary.copied_images:
        parts.append("A copy is a fact that can be checked by eye; it needs no statistics.")
    if summary.calibration is not None:
        c = summary.calibration
        parts.append(
            f"Of the {c.tested:,} prompts whose score was judged, {c.suspected:,} stand out from {c.ordinary:,} "
            f"ordinary prompts; {c.level:.0%} of those that stand out are expected to be false alarms. Of ordinary "
            f"prompts set aside as a check, {c.alarms.value:.1%} looked suspicious one by one, where {c.level:.0%} may."
        )
    nearness = next((row for row in summary.nearness or [] if row.group == "all"), None)
    if nearness is not None:
        p = "below 0.001" if nearness.p_value < 0.001 else f"{nearness.p_value:.3f}"
        parts.append(
            f"{nearness.nearer:g} of {nearness.images:,} generated pictures are nearer to a training picture than to "
            f"comparable pictures that the model was not trained on; if it knew neither, the probability of that many "
            f"would be {p}."
        )
    if summary.calibration is None:
        reason = next((state.reason for state in summary.states if state.name == "calibrate" and state.reason), "")
        parts.append("The scores were not calibrated in this run" + (f": {reason}." if reason else "."))
    return " ".join(parts)


def _done(run: Run) -> str:
    fixes = [row for row in run.mitigations if row["name"] != UNMITIGATED]
    if not fixes:
        return "No mitigation was tried in this run."
    tried = f"{_count(len(fixes), 'mitigation was', 'mitigations were')} tried"
    known = [row for row in fixes if row["attack_knows_it"]]
    if not known:
        return f"{tried}, none of them attacked by an attack that knows it, and so untested."
    parts = [f"{tried}."]
    unknown = [row["name"] for row in fixes if not row["attack_knows_it"]]
    if unknown:
        parts.append(f"Not attacked by an attack that knows it, and so untested: {', '.join(unknown)}.")
    best = min(known, key=lambda row: row["copy_rate_attacked"])
    parts.append(
        f"Of those attacked, the most effective ({best['name']}) leaves copies in {best['copy_rate'] or 0:.0%} of "
        f"the pictures, and in {best['copy_rate_attacked']:.0%} once an attacker searches for them."
    )
    needed, pictures = run.summary.needed, best["pictures"]
    if needed and pictures is not None and pictures < needed:
        attacked = _count(pictures, "picture was", "pictures were")
        parts.append(f"{attacked} attacked: too few to clear a mitigation, which takes {needed} without a copy.")
    return " ".join(parts)


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
