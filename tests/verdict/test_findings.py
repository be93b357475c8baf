"""Findings follow from a run's numbers; what was not run is never a pass."""

from __future__ import annotations

import copy

import pytest

from unmemorize.verdict.findings import CATALOGUE, Facts, find

INTERVAL = {"value": 0.9, "low": 0.8, "high": 1.0}
SUMMARY = {
    "detector": {"auc": INTERVAL},
    "text_control": {"auc": {"value": 0.5, "low": 0.4, "high": 0.6}},
    "calibration": {
        "level": 0.05,
        "suspected": 2,
        "unverified": 0,
        "alarms": {"value": 0.04, "low": 0.01, "high": 0.07},
    },
    "nearness": [{"group": "all", "images": 9, "nearer": 5.0, "p_value": 0.4}],
}
VERIFY = [{"id": "a", "verdict": "none"}, {"id": "b", "verdict": "none"}]
CALIBRATED = [{"id": "a", "p_value": 0.01, "q_value": 0.04}, {"id": "b", "p_value": 0.5, "q_value": 0.5}]
WORDS = {"id": "a", "starts": [0, 2, 6], "stops": [1, 5, 10], "significance": [1.0, 1.0, 1.0]}
FIX = {"name": "fix", "copy_rate": 0.0, "copy_rate_attacked": 0.1, "control_rate": 0.05}
FIX |= {"copy_rate_attacked_low": 0.02, "control_rate_high": 0.08}
TEXTS = {"a": "a red kite", "b": "an owl"}


def states(**changes):
    given = {"summary": SUMMARY, "texts": TEXTS, "explain": [WORDS], "calibrated": CALIBRATED, "verify": VERIFY}
    found = find(Facts(**(given | {"mitigations": [FIX | {"name": "none"}, FIX]} | changes)))
    return {f.code: (f.state, f.count) for f in found}


def summary(**changes):
    return copy.deepcopy(SUMMARY) | changes


def copied(verdict, key="a"):
    return [row | ({"verdict": verdict} if row["id"] == key else {}) for row in VERIFY]


def test_a_clean_run_passes_all_that_applies():
    found = states()
    assert found.pop("UM003") == ("not applicable", 0)
    assert set(found.values()) == {("passed", 0)}
    assert list(found) == [c.code for c in CATALOGUE if c.code != "UM003"]


def test_where_nothing_was_run_nothing_passes():
    nothing = dict.fromkeys(("explain", "calibrated", "verify", "mitigations"))
    none = dict.fromkeys(("detector", "text_control", "calibration", "nearness"))
    assert {state for state, _ in states(summary=none, **nothing).values()} == {"not run", "not applicable"}


TRIGGER = WORDS | {"significance": [1.0, 7.0, 1.0]}
CASES = {
    "UM001": {"verify": copied("verbatim")},
    "UM002": {"verify": copied("template")},
    "UM003": {"verify": copied("verbatim"), "explain": [TRIGGER]},
    "UM004": {"mitigations": [FIX | {"copy_rate_attacked": 0.6, "copy_rate_attacked_low": 0.5}]},
    "UM005": {"mitigations": [FIX | {"copy_rate_attacked": None, "control_rate": None}]},
    "UM006": {"mitigations": [FIX | {"control_rate": 0.3, "control_rate_high": 0.4}]},
    "UM007": {"summary": summary(calibration=SUMMARY["calibration"] | {"unverified": 1})},
    "UM008": {"verify": copied("verbatim", "b")},
    "UM009": {"summary": summary(text_control={"auc": INTERVAL})},
    "UM010": {"summary": summary(calibration=SUMMARY["calibration"] | {"alarms": INTERVAL})},
    "UM011": {"summary": summary(nearness=[SUMMARY["nearness"][0] | {"p_value": 0.001}])},
}


@pytest.mark.parametrize("code", CASES)
def test_each_code_has_a_run_that_raises_it(code):
    assert states(**CASES[code])[code] == ("issue", 1)


def test_codes_are_those_of_the_catalogue_and_of_the_docs(request):
    text = (request.config.rootpath / "docs" / "report.md").read_text("utf-8")
    assert [c.code for c in CATALOGUE] == list(CASES)
    assert all(f"({c.code.lower()})=" in text for c in CATALOGUE)


def test_the_trigger_is_named():
    found = find(Facts(SUMMARY, TEXTS, [TRIGGER], CALIBRATED, copied("verbatim"), None))
    assert "“red”" in next(f.evidence for f in found if f.code == "UM003")
