"""The data audit's page: groups of pictures as contact sheets, trigger words with their pictures.

Captions, ids and file names are hostile text: Jinja escapes all of them, and the page runs no script at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from unmemorize.core.files import require_plain
from unmemorize.core.run import RunRecord
from unmemorize.report.build import rendered, write_text
from unmemorize.report.pictures import picture_loader
from unmemorize.report.schema import read_document, read_rows

KINDS = {
    "across": (
        "Words shared across captions",
        "A word or phrase that captions of one picture share and other captions do not: the model can learn to answer "
        "it with that picture in any prompt.",
    ),
    "within": (
        "Words repeated within a caption",
        "Said more often in one caption than chance would. Captions and pictures are those where it is most striking.",
    ),
    "slot": (
        "Captions that differ in one slot",
        "One sentence with one word exchanged, over one picture; ▢ is the word that differs.",
    ),
}
SHOWN = 40
REASONS = 200

_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int64()
_RISK = [("risk", _REAL), ("risk_low", _REAL), ("risk_high", _REAL)]
_PAIR = pa.struct([("first", _WHOLE), ("second", _WHOLE), ("cosine", _REAL)])
TRIGGERS = pa.schema(
    [
        *(("word", _TEXT), ("kind", _TEXT), ("captions", _WHOLE), ("image_groups", _WHOLE), ("concentration", _REAL)),
        *(("lift", _REAL), ("p_value", _REAL), ("group", _WHOLE), ("rows", _WHOLE), ("sample", pa.list_(_TEXT))),
        *_RISK,
    ]
)
GROUPS = pa.schema(
    [
        *((name, _WHOLE) for name in ("group", "rows", "files", "pixels", "captions")),
        *(("tightest", _PAIR), ("loosest", _PAIR)),
        *_RISK,
    ]
)
SKIPPED = pa.schema([("id", _TEXT), ("reason", _TEXT)])


class NearDuplicates(BaseModel):
    """By which rule near-duplicates were found, and what share of altered copies of some pictures it finds."""

    rule: str
    compared: str
    copies_planted: int
    recall: dict[str, float]


class Against(BaseModel):
    """How many rows have a picture that is in another audit, too, and by which rule."""

    run: str
    rule: str
    compared: str
    rows: int


class DataSummary(BaseModel):
    """`data.json`."""

    near_duplicates: NearDuplicates
    against: Against | None = None
    triggers: list[dict[str, Any]]
    duplicate_groups: int
    rows: int
    pictures: int
    uncaptioned: int = 0
    skipped: int
    skipped_by_reason: dict[str, int]
    drop: int
    recaption: int


class Samples(BaseModel):
    """`samples.json`: a few rows of each group that is shown, and the captions said most often."""

    groups: dict[int, list[dict[str, Any]]]
    captions: list[dict[str, Any]]


def build_data_report(run: Path) -> Path:
    """Write `report.html` into a data audit's run directory, from what is there; returns its path.

    Raises:
        UserError: The run directory is incomplete or damaged.
    """
    require_plain(run)
    summary = read_document(run / "data.json", DataSummary)
    triggers = read_rows(run / "triggers.parquet", TRIGGERS)
    page = rendered(
        "data.html.j2",
        record=read_document(run / "run.json", RunRecord),
        s=summary,
        sentence=sentence(summary),
        kinds=[(k, *KINDS[k], [t for t in triggers if t["kind"] == k]) for k in KINDS],
        groups=read_rows(run / "groups.parquet", GROUPS)[:SHOWN],
        shown=SHOWN,
        samples=read_document(run / "samples.json", Samples),
        skipped=read_rows(run / "skipped.parquet", SKIPPED)[:REASONS],
        picture=picture_loader(run),
    )
    return write_text(run / "report.html", page)


def sentence(s: DataSummary) -> str:
    """What was found, in a sentence."""
    if not s.rows:
        return "No row could be read, so nothing was audited."
    groups = _count(s.duplicate_groups, "group of duplicate pictures", "groups of duplicate pictures")
    words = len(s.triggers)
    if not s.duplicate_groups and not words:
        return f"No duplicate pictures and no trigger words among {_count(s.rows, 'row', 'rows')}."
    return f"{groups} and {_count(words, 'trigger', 'triggers')} among {_count(s.rows, 'row', 'rows')}."


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"
