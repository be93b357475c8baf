"""Findings and conditions as JUnit XML, which build servers show."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmemorize.core.run import atomic
from unmemorize.verdict.conditions import Condition

_forbidden = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


def write_junit(path: Path, summary: dict[str, Any], conditions: Sequence[Condition]) -> None:
    """Write a test case per finding and per condition: an issue or a condition met is a failure.

    Every state but *issue* and *passed* is shown as skipped.
    """
    suite = ET.Element("testsuite", name="unmemorize audit")
    for found in summary["findings"]:
        case = _case(suite, f"{found['code']} {found['title']}", "unmemorize.findings")
        if found["state"] == "issue":
            message = f"{found['severity']}: {found['evidence']}"
            ET.SubElement(case, "failure", message=_clean(message)).text = _clean(found["advice"])
        elif found["state"] != "passed":
            ET.SubElement(case, "skipped", message=_clean(f"{found['state']}: {found['evidence']}"))
    for condition in conditions:
        case = _case(suite, str(condition), "unmemorize.conditions")
        if condition.met(summary["measures"]):
            ET.SubElement(case, "failure", message=condition.explain(summary["measures"]))
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f".//{tag}"))))
    with atomic(path) as temporary:
        temporary.write_bytes(ET.tostring(suite, encoding="utf-8", xml_declaration=True))


def _case(suite: ET.Element, name: str, group: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", name=_clean(name), classname=group)


def _clean(text: str) -> str:
    return _forbidden.sub("\N{REPLACEMENT CHARACTER}", text)
