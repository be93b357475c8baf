"""Published tables: the command that gives each, the numbers that are expected, and those of runs that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmemorize.core.shards import Row
from unmemorize.report.bench import EVERY, RANKING
from unmemorize.report.schema import ATTACK_CURVE, MITIGATIONS, read_rows

NOTEBOOK = "output of the authors' public notebook"
RERUN = "re-run of Jeon et al. 2025"
BLOG = "the authors' account of June 2026"
NOTES = "notes of others on the paper"


@dataclass(frozen=True)
class Number:
    """A published number and where it stands in a run.

    Attributes:
        what: What it measures.
        published: The number.
        low: The lowest that is expected,
        high: and the highest: what was published for the same setting, else the 95% interval of so many pictures.
        source: Where it was read.
        ours: The number in a run directory; None where it is not there.
    """

    what: str
    published: float
    low: float
    high: float
    source: str
    ours: Callable[[Path], float | None]


@dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
        name: What it is called here, and its run directory under `runs/reproduce`.
        paper: Where it was published.
        model: The model.
        data: What has to be there, under which names.
        command: What gives it; RUN stands for the run directory.
        numbers: Its numbers.
    """

    name: str
    paper: str
    model: str
    data: str
    command: str
    numbers: tuple[Number, ...]


def ranked(method: str, value: str) -> Callable[[Path], float | None]:
    """A number of a method in a ranking of detectors."""
    return lambda run: _first(run, "bench", RANKING, value, group=EVERY, method=method)


def copied(mitigation: str, value: str) -> Callable[[Path], float | None]:
    """A number of a mitigation in an audit; "none" is the model as it came."""
    return lambda run: _first(run, "mitigations", MITIGATIONS, value, name=mitigation)


def attacked(mitigation: str, updates: int) -> Callable[[Path], float | None]:
    """The share of memorized pictures that an attack of so many updates gets out of a mitigated model."""
    return lambda run: _first(
        run, "attack_curve", ATTACK_CURVE, "copy_rate", mitigation=mitigation, group="memorized", steps=updates
    )


def _first(run: Path, table: str, schema: Any, value: str, **wanted: object) -> float | None:
    path = run / "scores" / f"{table}.parquet"
    rows: Sequence[Row] = read_rows(path, schema, required=False)
    for row in rows:
        if all(row[name] == what for name, what in wanted.items()):
            return None if row[value] is None else float(row[value])
    return None


GAP, FIRST = "noise-gap:last=50", "noise-gap"
BENCH = (
    "unmemorize bench MODEL --labels labelled.csv --method noise-gap:last=50 --method noise-gap --seeds 4 --steps 50 "
    "--guidance 7.5 --run RUN"
)
LABELLED = "labelled.csv: the published memorized prompts with memorized=1, as many ordinary prompts with 0"
AUDIT = (
    "unmemorize audit MODEL --prompts verbatim.csv --references pictures --sscd sscd_disc_mixup.torchscript.pt "
    "--plan full --steps 50 --guidance 7 --pictures 10 --attack-method dori --attack-updates 50 {mitigations} --run RUN"
)
VERBATIM = "verbatim.csv: the 112 prompts that are listed as verbatim; pictures: the training pictures of the list"
SD14, SD20 = "Stable Diffusion 1.4", "Stable Diffusion 2.0"

TABLES = (
    Table(
        "wen-detection-sd14",
        "Wen et al. 2024, detection",
        SD14,
        LABELLED,
        BENCH,
        (
            Number("AUC, all 50 steps, 4 seeds", 0.994, 0.994, 0.996, f"{NOTEBOOK}; {RERUN}", ranked(GAP, "auc")),
            Number("TPR at 1% FPR, the same", 0.982, 0.982, 0.982, f"{NOTEBOOK}; {RERUN}", ranked(GAP, "tpr")),
            Number("AUC, first step, 4 seeds", 0.992, 0.976, 0.992, f"{RERUN}, 1 and 4 seeds", ranked(FIRST, "auc")),
            Number("TPR at 1% FPR, the same", 0.944, 0.896, 0.944, f"{RERUN}, 1 and 4 seeds", ranked(FIRST, "tpr")),
        ),
    ),
    Table(
        "wen-detection-sd20",
        "Wen et al. 2024, detection",
        SD20,
        LABELLED,
        BENCH,
        (
            Number("AUC, all 50 steps, 4 seeds", 0.990, 0.982, 0.991, f"{RERUN}, 1 to 16 seeds", ranked(GAP, "auc")),
            Number("TPR at 1% FPR, the same", 0.949, 0.904, 0.949, f"{RERUN}, 1 to 16 seeds", ranked(GAP, "tpr")),
            Number("AUC, first step, 4 seeds", 0.980, 0.948, 0.983, f"{RERUN}, 1 to 16 seeds", ranked(FIRST, "auc")),
            Number("TPR at 1% FPR, the same", 0.876, 0.739, 0.881, f"{RERUN}, 1 to 16 seeds", ranked(FIRST, "tpr")),
        ),
    ),
    Table(
        "dori-sd14",
        "Kowalczuk et al. 2026, main table, with NeMo (Hintersdorf et al. 2024) and Wanda 1% (Chavhan et al. 2024)",
        SD14,
        VERBATIM,
        AUDIT.format(mitigations="--mitigation nemo --mitigation wanda:sparsity=0.01"),
        (
            Number("copied, no mitigation", 0.98, 0.94, 1.00, BLOG, copied("none", "copy_rate")),
            Number("copied, NeMo", 0.20, 0.13, 0.28, BLOG, copied("nemo", "copy_rate")),
            Number("copied, NeMo, after 50 updates", 0.99, 0.95, 1.00, BLOG, attacked("nemo", 50)),
            Number("copied, Wanda 1%", 0.00, 0.00, 0.03, BLOG, copied("wanda", "copy_rate")),
            Number("copied, Wanda 1%, after 50 updates", 0.72, 0.63, 0.80, BLOG, attacked("wanda", 50)),
        ),
    ),
    Table(
        "dori-sd14-wanda-10",
        "Kowalczuk et al. 2026, main table, the stress test",
        SD14,
        VERBATIM,
        AUDIT.format(mitigations="--mitigation wanda:sparsity=0.1"),
        (Number("copied, Wanda 10%, after 50 updates", 0.01, 0.00, 0.05, BLOG, attacked("wanda", 50)),),
    ),
    Table(
        "dori-sd20",
        "Kowalczuk et al. 2026, main table",
        SD20,
        "verbatim.csv: the prompts of the published list for this model; pictures: their training pictures",
        AUDIT.format(mitigations="--mitigation nemo"),
        (
            Number("copied, NeMo", 0.06, 0.06, 0.06, NOTES, copied("nemo", "copy_rate")),
            Number("copied, NeMo, after 50 updates", 1.00, 1.00, 1.00, BLOG, attacked("nemo", 50)),
        ),
    ),
)


def reproductions(runs: Path) -> list[dict[str, Any]]:
    """Every table with its command, its numbers, and beside them ours where a run is in `runs`.

    Raises:
        UserError: A run is damaged.
    """
    described = []
    for table in TABLES:
        run = runs / table.name
        numbers = []
        for number in table.numbers:
            row = {"what": number.what, "published": number.published, "low": number.low, "high": number.high}
            numbers.append(row | {"source": number.source, "ours": number.ours(run)})
        facts = {"name": table.name, "paper": table.paper, "model": table.model, "data": table.data}
        described.append(facts | {"command": table.command.replace("RUN", str(run)), "numbers": numbers})
    return described
