"""The published table of methods and families is what running every method on a family gives."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "families.md"


@pytest.fixture
def families(monkeypatch):
    """The measurement, which imports the tiny pipelines from here; what makes it fast is taken back."""
    for folder in ("tests", "benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    monkeypatch.setattr("unmemorize.unlearn.erase.WORD_PAIRS", 4)
    return importlib.import_module("cases.families")


def published(path):
    """What the page says by family and method: None where the method works, else the reason."""
    table, reasons = path.read_text(encoding="utf-8").split("\n\n")
    numbered = dict(line.split(". ", 1) for line in reasons.splitlines())
    header, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    said = {}
    for name, *cells in rows:
        for family, text in zip(header[1:], cells, strict=True):
            said[family, name] = None if text == "works" else numbered[text.removeprefix("not applicable (")[:-1]]
    return said


def test_the_page_has_every_method_and_family(families):
    """A method or family that is new is missing until the page is written again."""
    expected = {(family, name) for family in families.FAMILIES for name in families.rows()}
    assert set(published(PAGE)) == expected


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux", "pixart"])
def test_the_cells_of_a_family_are_as_published(families, family):
    """Each method works, or says why it does not apply; nothing else is raised."""
    said = published(PAGE)
    for name, (kind, spelled) in families.rows().items():
        assert families.cell(family, kind, spelled) == said[family, name], name
