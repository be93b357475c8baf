"""Findings and conditions as JUnit XML, which build servers show."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmemorize.core.outputs import write_output
from unmemorize.core.plain import well_formed
from unmemorize.verdict.conditions import Condition


def write_junit(path: Path, summary: dict[str, Any], conditions: Sequence[Condition]) -> None:
    """Write a test case per finding and per condition: an issue or a condition met is a failure.

    Every state but *issue* and *passed* is shown as skipped. `-` stands for the standard output.
    """
    suite = ET.Element("testsuite", name="unmemorize audit")
    for finding in summary["findings"]:
        case = _case(suite, f"{finding['code']} {finding['title']}", "unmemorize.findings")
        if finding["state"] == "issue":
            message = f"{finding['severity']}: {finding['evidence']}"
            ET.SubElement(case, "failure", message=well_formed(message)).text = well_formed(finding["advice"])
        elif finding["state"] != "passed":
            ET.SubElement(case, "skipped", message=well_formed(f"{finding['state']}: {finding['evidence']}"))
    for condition in conditions:
        case = _case(suite, str(condition), "unmemorize.conditions")
        if condition.met(summary["measures"]):
            ET.SubElement(case, "failure", message=well_formed(condition.explain(summary["measures"])))
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f".//{tag}"))))
    write_output(str(path), ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def _case(suite: ET.Element, name: str, group: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", name=well_formed(name), classname=group)
