"""Findings follow from a run's numbers, and pass on evidence only."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from scipy.stats import binomtest, fisher_exact

from unmemorize.verdict.conditions import measures
from unmemorize.verdict.findings import CATALOGUE, Facts, find

INTERVAL = {"value": 0.9, "low": 0.8, "high": 1.0}
ALARMS = {"value": 0.04, "low": 0.01, "high": 0.07}
SUMMARY = {
    "bound": 0.1,
    "references": 60,
    "templates": 8,
    "generated_prompts": 60,
    "images": 120,
    "states": [],
    "detector": {"auc": INTERVAL},
    "text_control": {"auc": {"value": 0.5, "low": 0.4, "high": 0.6}},
    "calibration": {"level": 0.05, "suspected": 2, "unverified": 0, "alarms": ALARMS},
    "nearness": [{"group": "all", "images": 1000, "nearer": 500.0, "p_value": 0.4}],
}
SUMMARY |= dict.fromkeys(("copied_prompts", "copied_images", "verbatim_images", "template_images"), 0)
VERIFY = [{"id": str(i), "verdict": "none"} for i in range(60) for _ in range(2)]
CALIBRATED = [{"id": str(i), "p_value": 0.01 + 0.01 * i, "q_value": 0.5} for i in range(60)]
TEXTS = {str(i): "a red kite" for i in range(60)}
WORDS = {"id": "0", "starts": [0, 2, 6], "stops": [1, 5, 10], "significance": [1.0, 1.0, 1.0]}


def fix(*, left=0, back=0, pictures=60, control=0, controls=60, name="fix", knows=True):
    """A mitigation's row: pictures with a copy of their own prompt, after an attack, and of the control."""
    counts = {"pictures": pictures, "pictures_copied": left, "pictures_copied_attacked": back}
    counts |= {"control_pictures": controls, "control_pictures_copied": control}
    rates = {"copy_rate": left / pictures, "copy_rate_attacked": back / pictures, "control_rate": control / controls}
    return {"name": name, "attack_knows_it": knows} | counts | rates


def findings(**changes):
    given = {"summary": SUMMARY, "texts": TEXTS, "explain": [WORDS], "calibrated": CALIBRATED, "verify": VERIFY}
    facts = Facts(**(given | {"mitigations": [fix(name="none", left=60), fix()]} | changes))
    return {f.code: f for f in find(facts)}


def states(**changes):
    return {code: (f.state, f.count) for code, f in findings(**changes).items()}


def summary(**changes):
    return copy.deepcopy(SUMMARY) | changes


def calibration(**changes):
    return summary(calibration=SUMMARY["calibration"] | changes)


def copied(verdict, *keys):
    return [row | ({"verdict": verdict} if row["id"] in keys else {}) for row in VERIFY]


def test_a_run_with_enough_data_passes_all_that_applies():
    """Sixty prompts, pictures and controls without a hit decide 10%; a thousand pictures at one half decide UM011."""
    found = states(summary=summary(generated_prompts=500))
    assert [found.pop(code) for code in ("UM003", "UM008")] == [("not applicable", 0)] * 2
    assert set(found.values()) == {("passed", 0)}
    assert list(found) == [c.code for c in CATALOGUE if c.code not in ("UM003", "UM008")]


def test_where_nothing_was_run_nothing_passes():
    """No stage but scoring: every code is not run or not applicable."""
    nothing = dict.fromkeys(("explain", "calibrated", "verify", "mitigations"))
    none = dict.fromkeys(("detector", "text_control", "calibration", "nearness"))
    found = states(summary=summary(**none), **nothing)
    assert {state for state, _ in found.values()} == {"not run", "not applicable"}


TRIGGER = WORDS | {"begin": 2.0, "end": 1.0, "padding": 4.0, "omitted": 1, "pictures": 4}
TRIGGER |= {"copies_with": 4, "copies_without": 0}
CASES = {
    "UM001": {"verify": copied("verbatim", "0")},
    "UM002": {"verify": copied("template", "0")},
    "UM003": {"verify": copied("verbatim", "0"), "explain": [TRIGGER]},
    "UM004": {"mitigations": [fix(pictures=6, back=4, controls=6)]},
    "UM005": {"mitigations": [fix() | {"copy_rate_attacked": None, "control_rate": None}]},
    "UM006": {"mitigations": [fix(pictures=6, back=3, controls=6, control=3)]},
    "UM007": {"summary": calibration(unverified=1)},
    "UM008": {"verify": copied("verbatim", "0", "50")},
    "UM009": {"summary": summary(text_control={"auc": INTERVAL})},
    "UM010": {"summary": calibration(alarms=INTERVAL)},
    "UM011": {"summary": summary(nearness=[SUMMARY["nearness"][0] | {"p_value": 0.001}])},
    "UM012": {"mitigations": [fix(left=25)]},
}


@pytest.mark.parametrize("code", CASES)
def test_each_code_has_a_run_that_raises_it(code):
    """The state issue, once."""
    assert states(**CASES[code])[code] == ("issue", 1)


SIX = [fix(pictures=6, controls=6)]
UNDECIDED = {
    "UM001": ({"verify": VERIFY[:4]}, "0 of 2 prompts [0%, 84%]; too few to rule out 10%, which takes 0 of 36 prompts"),
    "UM002": ({"verify": VERIFY[:4]}, "which takes 0 of 36 prompts"),
    "UM004": ({"mitigations": SIX}, "0 of 6 pictures [0%, 46%]; too few to rule out 10%, which takes 0 of 36 pictures"),
    "UM006": ({"mitigations": SIX}, "control 0 of 6 [up to 46%]"),
    "UM007": ({"summary": summary(references=1)}, "training pictures to compare with: 1"),
    "UM008": ({"verify": copied("verbatim", "0", "1")}, "0 of 2 prompts that gave a copy [0%, 84%]"),
    "UM009": ({"summary": summary(detector={"auc": {"value": 0.6, "low": 0.5, "high": 0.7}})}, "the intervals overlap"),
    "UM010": ({"summary": calibration(alarms={"value": 0.0, "low": 0.0, "high": 0.95})}, "takes about 142 unrelated"),
    "UM011": ({}, "takes about 402 prompts"),
    "UM012": ({"mitigations": SIX}, "0 of 6 pictures [0%, 46%]"),
}


@pytest.mark.parametrize("code", UNDECIDED)
def test_too_little_evidence_is_inconclusive_and_says_what_would_decide(code):
    """Where the upper limit of a rate is above the bound, no finding passes."""
    changes, says = UNDECIDED[code]
    found = findings(**changes)[code]
    assert (found.state, found.count) == ("inconclusive", 0)
    assert says in found.evidence


def test_the_bound_is_the_runs_own():
    """Six pictures rule out 50%, and sixty do not rule out 5%."""
    assert findings(summary=summary(bound=0.5), mitigations=SIX)["UM004"].state == "passed"
    assert findings(summary=summary(bound=0.05))["UM004"].state == "inconclusive"


BLIND = {
    "no mask": ("UM002", {"summary": summary(templates=0)}),
    "SSCD": ("UM002", {"summary": summary(templates=None)}),
    "0 of 0 suspected": ("UM007", {"summary": calibration(suspected=0)}),
    "0 of 0 copied": ("UM008", {}),
}


@pytest.mark.parametrize("case", BLIND)
def test_a_check_that_cannot_see_what_it_checks_does_not_apply(case):
    """Zero of zero, and templates that no mask or criterion tells, are no pass."""
    code, changes = BLIND[case]
    assert states(**changes)[code] == ("not applicable", 0)


@pytest.mark.parametrize("back", range(7))
@pytest.mark.parametrize("control", [0, 1, 3, 6])
def test_an_attack_is_held_against_its_control_by_an_exact_test(back, control):
    """UM004 and UM006 agree with scipy's tests on pictures, whatever the counts."""
    found = findings(mitigations=[fix(pictures=6, back=back, controls=6, control=control)])
    table = [[back, 6 - back], [control, 6 - control]]
    more = fisher_exact(table, alternative="greater").pvalue <= 0.05
    assert (found["UM004"].state == "issue") == more
    drawn = binomtest(control, 6, 0.1, alternative="greater").pvalue <= 0.05
    assert (found["UM006"].state == "issue") == (drawn and not more)
    assert (found["UM006"].state == "passed") == more


def test_copies_that_a_mitigation_leaves_are_a_finding_of_their_own():
    """Copies that stay under the original prompt are no pass of UM004, and UM012 names them."""
    found = findings(mitigations=[fix(left=25, back=25)])
    assert found["UM004"].state == "inconclusive"
    assert found["UM012"].evidence == "fix: 25 of 60 pictures, 42% of those generated"


def test_an_attack_that_never_met_the_mitigation_clears_nothing():
    """It leaves UM004 not run and UM005 an issue, and no condition gets its figure; copies it finds do count."""
    blind = [fix(name="guard", knows=False)]
    found = findings(mitigations=blind)
    assert (found["UM004"].state, found["UM005"].state) == ("not run", "issue")
    assert found["UM005"].evidence == "guard: not attacked by one that knows it"
    assert findings(mitigations=[fix(name="guard", back=30, knows=False)])["UM004"].state == "issue"
    both = [fix(name="guard", knows=False), fix(back=20)]
    for rows, value in ((blind, None), (both, 20 / 60)):
        values = measures(SUMMARY, list(found.values()), {"mitigations": rows})
        assert values["copies_after_attack"] == value


def test_why_scores_are_not_calibrated_stands_in_every_finding_that_lacks_it():
    """With the number of ordinary prompts given and needed."""
    reason = "3 ordinary prompts were given and p-values need 20"
    off = summary(calibration=None, states=[{"name": "calibrate", "state": "not applicable", "reason": reason}])
    found = findings(summary=off, calibrated=None)
    for code in ("UM007", "UM008", "UM010"):
        assert (found[code].state, reason in found[code].evidence) == ("not run", True)


def test_conditions_count_what_is_inconclusive():
    """`inconclusive` is a number of its own, and an undecided code has none."""
    found = findings(mitigations=SIX)
    values = measures(SUMMARY, list(found.values()), {"mitigations": SIX})
    assert values["inconclusive"] == sum(f.state == "inconclusive" for f in found.values()) == 4
    assert values["UM004"] is None


def test_codes_are_those_of_the_catalogue_and_of_the_docs(request):
    """Every code has a case above and a paragraph in the documentation."""
    text = (request.config.rootpath / "docs" / "report.md").read_text("utf-8")
    assert [c.code for c in CATALOGUE] == list(CASES)
    assert all(f"({c.code.lower()})=" in text for c in CATALOGUE)


def trigger(*rows):
    """State and evidence of UM003 for these rows of the table."""
    texts = {row["id"]: "a red kite" for row in rows}
    found = find(Facts(SUMMARY, texts, list(rows), CALIBRATED, copied("verbatim"), None))
    return next((f.state, f.evidence) for f in found if f.code == "UM003")


def test_the_trigger_is_named_with_what_was_generated():
    """The word, copies with it and without it, how many words were tried, and where else the gradient lies."""
    state, evidence = trigger(TRIGGER)
    assert state == "issue"
    assert "“red”: 4 of 4 pictures copied with it, 0 of 4 without" in evidence
    assert "one word tried of each of 1 prompts" in evidence
    assert "20% on begin tokens, 10% on end tokens, 40% on padding tokens" in evidence


def test_the_share_of_the_gradient_is_no_trigger():
    """Nearly all significance of the words on one of them, but the picture is copied without it: no issue."""
    dominant = TRIGGER | {"significance": [0.1, 9.0, 0.1], "copies_without": 4}
    assert trigger(dominant)[0] != "issue"
    assert trigger(WORDS | {"significance": [0.1, 9.0, 0.1]})[0] == "not applicable"


def test_copies_without_the_word_pass_where_there_are_enough_prompts():
    """Of sixty prompts at most 6% stop copying; of three it may be 71%; one that never copied again says nothing."""
    rows = [TRIGGER | {"id": f"{i}", "copies_without": 1} for i in range(60)]
    assert trigger(*rows)[0] == "passed"
    state, evidence = trigger(*rows[:3], TRIGGER | {"copies_with": 0})
    assert state == "inconclusive"
    assert "0 of 3 prompts [0%, 71%]" in evidence


@pytest.mark.parametrize(("copies", "pictures", "prompts"), [(2, 2, 1), (1, 4, 1), (3, 4, 1), (4, 4, 4)])
def test_what_chance_explains_is_inconclusive(copies, pictures, prompts):
    """Fisher's p is 1/6, 1/2, 1/14, and of four prompts one at 1/70 is 4/70 for all."""
    kept = [TRIGGER | {"id": f"{i}", "copies_without": 4} for i in range(prompts - 1)]
    assert trigger(*kept, TRIGGER | {"copies_with": copies, "pictures": pictures})[0] == "inconclusive"


def test_chance_seldom_makes_a_trigger():
    """Words that do nothing, prompts chosen because they copied: at most one run of twenty has a finding."""
    rng, runs, issues = np.random.default_rng(0), 400, 0
    for _ in range(runs):
        rows = []
        while len(rows) < 12:
            pictures, rate = 8, rng.uniform()
            with_it, without_it = rng.uniform(size=(2, pictures)) < rate
            if with_it[:2].any():  # the first two pictures are those that were found copied
                counts = {"copies_with": int(with_it.sum()), "copies_without": int(without_it.sum())}
                rows.append(TRIGGER | counts | {"id": f"{len(rows)}", "pictures": pictures})
        issues += trigger(*rows)[0] == "issue"
    assert issues / runs <= 0.05
