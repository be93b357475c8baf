"""Conditions for build servers, and the XML they read."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from unmemorize.core.errors import UserError
from unmemorize.verdict.conditions import NAMES, parse_conditions
from unmemorize.verdict.junit import write_junit

STATES = ("issue", "passed", "inconclusive", "not applicable", "not run")
VALUES = {"copied_prompts": 3, "copy_rate": 0.05, "auc": None}


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("copied_prompts > 2", True),
        ("copied_prompts>3", False),
        ("copied_prompts >= 3", True),
        ("copied_prompts < 3", False),
        ("copied_prompts <= 3", True),
        ("copied_prompts == 3", True),
        (" copied_prompts != 3 ", False),
        ("copy_rate > 4.5%", True),
        ("copy_rate > 0.06", False),
        ("auc < -1", True),  # not measured: clears nothing
    ],
)
def test_a_condition_is_a_comparison(text, met):
    (condition,) = parse_conditions([text])
    assert condition.met(VALUES) == met


def test_several_are_apart_by_commas():
    found = parse_conditions(["copied_prompts > 0, UM001 > 0", "auc < 0.5"])
    assert [str(c) for c in found] == ["copied_prompts > 0", "UM001 > 0", "auc < 0.5"]
    assert parse_conditions([""]) == []


@pytest.mark.parametrize(
    "text", ["copied_prompts", "> 0", "copied_prompts > x", "__import__('os') > 0", "auc = 1", f"auc > {'9' * 5000}"]
)
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(UserError, match="NAME OP NUMBER"):
        parse_conditions([text])


def test_an_unknown_name_lists_the_names():
    with pytest.raises(UserError) as caught:
        parse_conditions(["copies > 0"])
    assert all(name in str(caught.value) for name in NAMES)


def test_names_are_documented(request):
    text = (request.config.rootpath / "docs" / "report.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in NAMES if not name.startswith("UM"))


def test_junit_counts_issues_and_conditions_as_failures(tmp_path):
    """Every state but issue and passed is skipped; hostile text survives as text; what XML cannot hold is replaced."""
    words = {"title": "t", "severity": "high", "advice": "do", "evidence": "<b>\x00&\ud800"}
    findings = [words | {"code": f"UM00{i}", "state": s} for i, s in enumerate(STATES)]
    conditions = parse_conditions(["copied_prompts > 0, copy_rate > 1, auc < 1"])
    write_junit(tmp_path / "new" / "j.xml", {"findings": findings, "measures": VALUES}, conditions)
    suite = ET.parse(tmp_path / "new" / "j.xml").getroot()
    assert [suite.get(name) for name in ("tests", "failures", "skipped")] == ["8", "3", "3"]
    assert [case.get("message").split(":")[0] for case in suite.findall(".//skipped")] == list(STATES[2:])
    assert suite.find(".//failure").get("message") == "high: <b>\ufffd&\ufffd"
