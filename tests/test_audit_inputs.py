"""What an audit takes from the scores of ordinary prompts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm

from unmemorize.audit import AuditSpec
from unmemorize.audit.inputs import ordinary_scores
from unmemorize.audit.mitigate import generator_of

PROMPTS, SEEDS, CORRELATION = 25, 4, 0.95


@pytest.fixture
def audit(tmp_path):
    """An audit of one prompt, with ordinary prompts beside it, and what writes their scores."""
    (tmp_path / "prompts.txt").write_text("a lighthouse")
    (tmp_path / "ordinary.txt").write_text("".join(f"plain {i}\n" for i in range(PROMPTS)))
    files = {"prompts": str(tmp_path / "prompts.txt"), "ordinary": str(tmp_path / "ordinary.txt")}
    (tmp_path / "scores").mkdir()

    def write(scores: np.ndarray) -> None:
        for name, values in (("detect", np.zeros((1, SEEDS))), ("ordinary", scores)):
            pq.write_table(pa.table({"score": values.ravel()}), tmp_path / "scores" / f"{name}.parquet")

    return AuditSpec(model="none", **files, seeds=SEEDS), tmp_path, write


def draw(rng: np.random.Generator) -> np.ndarray:
    """Normal scores, (prompts, seeds), that agree between a prompt's seeds but for a twentieth of the variance."""
    own = rng.normal(scale=CORRELATION**0.5, size=(PROMPTS, 1))
    return own + rng.normal(scale=(1 - CORRELATION) ** 0.5, size=(PROMPTS, SEEDS))


def test_the_guards_false_alarms_are_those_promised(audit):
    """Over 400 calibrations a fresh prompt exceeds the threshold with probability 1 / (n + 1)."""
    spec, run, write = audit
    rng = np.random.default_rng(0)
    actual = []
    for _ in range(400):
        write(draw(rng))
        limits = generator_of(spec, run, "guard").keywords["limits"]
        actual.append(norm.sf(limits.threshold))  # a fresh prompt's score at one seed is standard normal
    promised = 1 / (PROMPTS + 1)
    assert np.mean(actual) == pytest.approx(promised, abs=3 * np.std(actual) / 20)


def test_every_prompt_counts_once_and_every_seed_is_used(audit):
    """One score a prompt, at the seeds in turn."""
    spec, run, write = audit
    scores = np.arange(PROMPTS * SEEDS, dtype=float).reshape(PROMPTS, SEEDS)
    write(scores)
    assert ordinary_scores(spec, run).tolist() == [scores[i, i % SEEDS] for i in range(PROMPTS)]
