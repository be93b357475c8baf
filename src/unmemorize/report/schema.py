"""What the report reads from a run directory, and what it says when something there is missing or damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from unmemorize.core.errors import UserError
from unmemorize.core.files import require_plain
from unmemorize.core.records import Finding, Interval
from unmemorize.core.run import RunRecord
from unmemorize.core.shards import Row

Loaded = TypeVar("Loaded", bound=BaseModel)


@dataclass(frozen=True)
class RateAt(Interval):
    """A true positive rate at a fixed false positive rate."""

    fpr: float


class Detector(BaseModel):
    """How well the score ranks memorized prompts first."""

    method: str
    label: str
    positives: int
    negatives: int
    auc: Interval
    tpr: RateAt


class TextControl(BaseModel):
    """How well the prompts' text alone does."""

    auc: Interval


class Roc(BaseModel):
    """The detector's operating points."""

    fpr: list[float]
    tpr: list[float]


class Dose(BaseModel):
    """How often pictures that were planted `copies` times came back."""

    copies: int
    pictures: int
    images: int
    copied: int
    copy_rate: float
    low: float
    high: float


class State(BaseModel):
    """What became of one step of the audit."""

    name: str
    state: str
    reason: str


class Calibration(BaseModel):
    """What p-values were made from, and how they held on ordinary prompts that were left out."""

    level: float
    ordinary: int
    smallest_p: float
    tested: int
    alarms: Interval
    discoveries: int
    false: int
    suspected: int
    unverified: int


class Nearness(BaseModel):
    """Whether generated pictures are nearer to training pictures than to held-out ones."""

    group: str
    held_out: str
    images: int
    nearer: float
    p_value: float


class Summary(BaseModel):
    """`summary.json`; None means not applicable.

    A run without `bound` was judged by an earlier version, which passed findings whose data decided nothing. `needed`
    is the number of units without a hit that rule the bound out.
    """

    verdict: Literal["issue", "passed", "too little", "untested"]
    sentence: str
    prompts: int
    generated_prompts: int
    images: int
    copied_prompts: int
    copied_images: int
    verbatim_images: int
    template_images: int
    detector: Detector | None
    text_control: TextControl | None
    roc: Roc | None
    dose: list[Dose] | None
    states: list[State]
    evaluations: dict[str, int]
    calibration: Calibration | None = None
    nearness: list[Nearness] | None = None
    findings: list[Finding] = []
    bound: float | None = None
    needed: int | None = None
    references: int | None = None


class Timing(BaseModel):
    """`timing.json`, which may be missing."""

    started: str | None = None
    seconds: dict[str, float] = {}


def _columns(needed: dict[str, pa.DataType], optional: dict[str, pa.DataType]) -> pa.Schema:
    """A table's columns; `needed` ones have a value in every row."""
    fields = [pa.field(name, kind, nullable=False) for name, kind in needed.items()]
    return pa.schema([*fields, *optional.items()])


_TEXT, _REAL, _WHOLE = pa.string(), pa.float64(), pa.int64()
PROMPTS = _columns(
    {"id": _TEXT, "prompt": _TEXT}, {"kind": _TEXT, "copies": _WHOLE, "memorable": pa.bool_(), "cluster": _TEXT}
)
DETECT = _columns({"id": _TEXT, "method": _TEXT, "seed": _WHOLE}, {"score": _REAL})
IMAGES = _columns({"id": _TEXT, "seed": _WHOLE, "image": _TEXT}, {"curve": pa.list_(_REAL)})
CALIBRATED = _columns({"id": _TEXT, "p_value": _REAL, "q_value": _REAL}, {})
EXPLAIN = _columns(
    {"id": _TEXT, "starts": pa.list_(_WHOLE), "stops": pa.list_(_WHOLE), "significance": pa.list_(_REAL)},
    {"begin": _REAL, "end": _REAL, "padding": _REAL}
    | {"omitted": _WHOLE, "pictures": _WHOLE, "copies_with": _WHOLE, "copies_without": _WHOLE},
)
REGIONS = _columns({"id": _TEXT, "seed": _WHOLE, "map": _TEXT}, {})
_RATES = (
    *("copy_rate", "copy_rate_low", "copy_rate_high"),
    *("copy_rate_attacked", "copy_rate_attacked_low", "copy_rate_attacked_high"),
    *("control_rate", "control_rate_low", "control_rate_high"),
)
_COUNTS = ("pictures", "pictures_copied", "pictures_copied_attacked", "control_pictures", "control_pictures_copied")
MITIGATIONS = _columns(
    {"name": _TEXT},
    dict.fromkeys(_RATES, _REAL)
    | {"quality": _REAL, "alignment": _REAL, "evaluations": _WHOLE}
    | {"attack_knows_it": pa.bool_(), "control": _TEXT}
    | dict.fromkeys(_COUNTS, _WHOLE),
)
ATTACK_CURVE = _columns(
    {"mitigation": _TEXT, "group": _TEXT, "steps": _WHOLE, "copy_rate": _REAL},
    {"low": _REAL, "high": _REAL, "ratio": _REAL},
)
VERIFY = _columns(
    {"id": _TEXT, "seed": _WHOLE, "image": _TEXT, "nearest": _TEXT, "verdict": _TEXT},
    {"caption": _TEXT, "distance": _REAL, "ratio": _REAL, "mirrored": pa.bool_()},
)


@dataclass(frozen=True)
class Run:
    """Everything the report shows, as read from `path`. `attack_knows_it` of a mitigation is never None."""

    path: Path
    record: RunRecord
    summary: Summary
    timing: Timing
    prompts: list[Row]
    detect: list[Row]
    images: list[Row]
    verify: list[Row]
    calibrated: list[Row]
    explain: list[Row]
    regions: list[Row]
    mitigations: list[Row]
    attack_curve: list[Row]


def load_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: It is not there, not finished far enough to report on, or damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory: name one that an audit wrote")
    require_plain(path)
    summary = read_document(path / "summary.json", Summary)
    scores = path / "scores"
    return Run(
        path=path,
        record=read_document(path / "run.json", RunRecord),
        summary=summary,
        timing=read_document(path / "timing.json", Timing) if (path / "timing.json").exists() else Timing(),
        prompts=read_rows(scores / "prompts.parquet", PROMPTS),
        detect=read_rows(scores / "detect.parquet", DETECT, required=summary.detector is not None),
        images=read_rows(scores / "images.parquet", IMAGES, required=False),
        verify=read_rows(scores / "verify.parquet", VERIFY, required=summary.images > 0),
        calibrated=read_rows(scores / "calibrated.parquet", CALIBRATED, required=summary.calibration is not None),
        explain=read_rows(scores / "explain.parquet", EXPLAIN, required=False),
        regions=read_rows(scores / "regions.parquet", REGIONS, required=False),
        mitigations=[
            row | {"attack_knows_it": _knows(row)}
            for row in read_rows(scores / "mitigations.parquet", MITIGATIONS, required=False)
        ],
        attack_curve=read_rows(scores / "attack_curve.parquet", ATTACK_CURVE, required=False),
    )


def _knows(row: Row) -> bool:
    """Whether an attack searched the mitigated model; in runs that do not say, only the guard was never met."""
    if row["copy_rate_attacked"] is None:
        return False
    knows: bool | None = row["attack_knows_it"]
    return bool(row["name"] != "guard") if knows is None else knows


def read_document(path: Path, kind: type[Loaded]) -> Loaded:
    """Read a JSON file of the run.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: run the audit again to complete this run directory") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}: restore the file or run the audit again") from error


def read_rows(path: Path, schema: pa.Schema, *, required: bool = True) -> list[Row]:
    """Read a table of the run.

    Raises:
        UserError: It is missing, though required, or damaged.
    """
    if not required and not path.exists():
        return []
    try:
        with pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
        if not table.num_rows and not required:
            return []
        for field in schema:
            if field.nullable and field.name not in table.schema.names:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        rows: list[Row] = table.select(schema.names).cast(schema).to_pylist()
        return rows
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read ({why}): restore the file or run the audit again") from error
