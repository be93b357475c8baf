"""The published table of methods and families is what running every method on every family gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_cell_of_the_table_is_as_published(monkeypatch):
    """Each method works on each family, or says why it does not apply; nothing else is raised."""
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    where = importlib.util.spec_from_file_location("families_table", ROOT / "benchmarks" / "families.py")
    families = importlib.util.module_from_spec(where)
    where.loader.exec_module(families)
    published = (ROOT / families.PAGE).read_text(encoding="utf-8")
    assert "\n".join(families.page()) + "\n" == published
