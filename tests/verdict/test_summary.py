"""The run's verdict, and the sentence that says it, from tables in a run directory."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from unmemorize.data.source import Prompt
from unmemorize.verdict.summary import Basis, summarise

ALARMS = {"value": 0.04, "low": 0.01, "high": 0.07}
PROMPTS = [Prompt(f"p{i}", f"prompt number {i}") for i in range(40)]

ONE_PICTURE = {"generated": 40, "suspected": 3, "basis": Basis(references=1)}


def judged(run, *, generated, suspected=0, copied=0, basis=None):
    """The summary of a run that generated from the first prompts, and suspects the last ones."""
    (run / "scores").mkdir(parents=True)
    verdicts = ["verbatim"] * copied + ["none"] * (generated - copied)
    verify = [{"id": f"p{i}", "verdict": verdict} for i, verdict in enumerate(verdicts)]
    q = [0.01 if i >= 40 - suspected else 1.0 for i in range(40)]
    tables = {"calibrated": [{"id": f"p{i}", "p_value": 0.5, "q_value": q[i]} for i in range(40)]}
    tables |= {"verify": verify} if verify else {}
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), run / "scores" / f"{name}.parquet")
    (run / "calibration.json").write_text(json.dumps({"level": 0.05, "alarms": ALARMS}))
    return summarise(run, PROMPTS, np.zeros((40, 1)), [], {}, basis or Basis(references=60))


@pytest.mark.parametrize(
    ("case", "verdict", "says"),
    [
        ({"generated": 40}, "passed", "up to 9% of such prompts may still give one"),
        ({"generated": 2}, "too little", "up to 84% of such prompts may still give one (95% limit)"),
        ({"generated": 2}, "too little", "To rule out 10% takes 36 prompts without one"),
        ({"generated": 38, "suspected": 3}, "too little", "3 prompts stand out from ordinary ones; 2 of them were not"),
        (ONE_PICTURE, "too little", "No copies of the 1 training picture were found among 40 pictures"),
        ({"generated": 2, "basis": Basis(0.5, 60)}, "too little", "up to 84%"),
        ({"generated": 6, "basis": Basis(0.5, 60)}, "passed", "up to 46%"),
        ({"generated": 2, "copied": 1}, "issue", "1 of 2 pictures"),
        ({"generated": 0}, "untested", "a suspicion, not a copy"),
    ],
)
def test_a_verdict_passes_on_evidence_only(case, verdict, says, tmp_path):
    """Without a copy it takes prompts enough for the bound, and every suspected one compared."""
    summary = judged(tmp_path / "run", **case)
    assert summary["verdict"] == verdict
    assert says in summary["sentence"]


def test_related_prompts_of_a_rung_count_once(tmp_path):
    """Thirty prompts of five families, each copied or not as a whole: the interval is that of five, not of thirty."""
    prompts = [Prompt(f"p{i}", f"text {i}", "verbatim", 100, True, f"family-{i // 6}") for i in range(30)]
    rows = [
        {"id": p.id, "seed": 0, "image": "", "nearest": "", "verdict": "verbatim" if i < 12 else "none"}
        for i, p in enumerate(prompts)
    ]
    (tmp_path / "scores").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scores" / "verify.parquet")
    (rung,) = summarise(tmp_path, prompts, np.zeros((30, 1)), [], {}, Basis(references=30))["dose"]
    expected = binomtest(2, 5).proportion_ci(0.95, method="exact")
    assert (rung["pictures"], rung["copied"], rung["copy_rate"]) == (30, 12, 0.4)
    assert (rung["low"], rung["high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
