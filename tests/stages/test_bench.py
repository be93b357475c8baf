"""The ranking of detectors: groups, numbers, costs, what does not apply, and what a killed run keeps."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from hostile import complaints
from pipelines import tiny
from unmemorize.data.source import Prompt
from unmemorize.metrics.ranking import auc, cluster_bootstrap, tpr_at_fpr
from unmemorize.report.bench import latex, rankings_of
from unmemorize.stages.rank import groups_of

WORDS = ("owl", "boat", "kite", "harbour", "bicycle", "fence", "field", "dusk", "gadget", "lighthouse", "oden", "red")
METHODS = ("--method", "noise-gap", "--method", "cascade:then=mid-noise,share=0.99")
HOSTILE = "<script>alert(1)</script> \\end{tabular}"


@pytest.fixture
def labelled(tmp_path, monkeypatch):
    """Six memorized prompts of two kinds and six ordinary ones, none related; few evaluations."""
    plain = lambda count: ["a red kite", "the old harbour", "dusk", "a field"]  # noqa: E731
    monkeypatch.setattr("unmemorize.stages.detect.ordinary_prompts", plain)
    monkeypatch.setattr("unmemorize.stages.trial.ROWS", 4)
    path = tmp_path / "labelled.csv"
    rows = [f"{word},{int(i < 6)},{HOSTILE if i < 3 else 'other'}" for i, word in enumerate(WORDS)]
    path.write_text("\n".join(["caption,memorized,kind", *rows]))
    return path


def test_the_ranking_is_what_the_scores_say(call, tiny_folder, labelled, tmp_path):
    """Areas, rates and intervals by hand from the table of scores; costs are those of a method alone."""
    run = tmp_path / "run"
    arguments = ("bench", tiny_folder, "--labels", labelled, "--seeds", 2, "--steps", 3, *METHODS, "--run", run)
    code, out, err = call(*arguments, "--json")
    assert code == 0, err
    found = json.loads(out)["models"][str(tiny_folder)]
    assert found["not_applicable"] == {}
    rows = {(row["group"], row["method"]): row for row in found["ranking"]}
    (model,) = (run / "models").iterdir()
    table = pq.read_table(model / "scores" / "detect.parquet")
    scores = table["score"].to_numpy().reshape(12, 2, 2).mean(axis=2)
    positive, clusters = np.arange(12) < 6, [str(i) for i in range(12)]
    for column, method in enumerate(("noise-gap", "cascade:then=mid-noise,share=0.99")):
        row = rows["memorized", method]
        for name, statistic in (("auc", auc), ("tpr", tpr_at_fpr)):
            expected = cluster_bootstrap(statistic, scores[:, column], positive, clusters)
            assert [row[name], row[f"{name}_low"], row[f"{name}_high"]] == [expected.value, expected.low, expected.high]
        assert (row["memorized"], row["ordinary"]) == (6, 6)
        part = np.r_[0:3, 6:12]
        assert rows[HOSTILE, method]["auc"] == auc(scores[part, column], positive[part])
        assert rows[HOSTILE, method]["auc_low"] is None  # three unrelated prompts
    assert rows["memorized", "noise-gap"]["evaluations"] == 1
    passed = (scores[:, 1] > 0).mean()
    assert passed > 0
    assert rows["memorized", "cascade:then=mid-noise,share=0.99"]["evaluations"] == pytest.approx(1 + 3 * passed)
    assert rows["memorized", "noise-gap"]["ratio"] > 0
    assert rows["memorized", "combination"]["evaluations"] > 1
    assert rows["memorized", "text alone"]["evaluations"] == 0
    assert min(row["behind"] for (group, _), row in rows.items() if group == "memorized") == 0
    page, tex = ((run / name).read_text() for name in ("report.html", "table.tex"))
    assert "<script>" not in page
    assert HOSTILE not in tex
    assert tex.count(r"\end{tabular}") == 1
    assert call(*arguments, "--json")[1] == out  # nothing is done again, costs included
    assert call(*arguments, "--seed", 5)[0] == 2


def test_without_a_method_all_are_ranked_and_the_same_command_goes_on(
    call, tiny_folder, labelled, tmp_path, monkeypatch
):
    """The last line names a method without its settings, which can be typed."""
    monkeypatch.setattr("unmemorize.audit.bench.methods", lambda kind: {"noise-gap:first=1,last=2": None, "dcs": None})
    arguments = ("bench", tiny_folder, "--labels", labelled, "--seeds", 1, "--steps", 2, "--run", tmp_path / "run")
    code, out, err = call(*arguments)
    assert code == 0, err
    assert "dcs" in out
    assert out.splitlines()[-1] == "next: unmemorize methods noise-gap"
    assert call(*arguments)[:2] == (0, out)


def test_what_does_not_apply_has_a_reason_and_the_others_are_ranked(call, labelled, tmp_path):
    """On a flow model, whose first step is noise alone; where nothing applies there is one line."""
    tiny("sd3").save_pretrained(tmp_path / "sd3")
    arguments = ("bench", tmp_path / "sd3", "--labels", labelled, "--seeds", 1, "--steps", 2, "--method", "dcs")
    code, _, err = call(*arguments, "--run", tmp_path / "nothing")
    assert code == 2
    assert len(complaints(err)) == 1
    assert "no method applies to it: dcs:" in err
    code, out, err = call(*arguments, "--method", "noise-gap", "--run", tmp_path / "some")
    assert code == 0, err
    assert "dcs: not applicable: " in out
    assert "noise-gap" in (tmp_path / "some" / "table.tex").read_text()


def test_a_mistake_is_one_line(call, tiny_folder, labelled, tmp_path):
    for arguments, message in (
        ((tiny_folder,), "name a file with a column named memorized with --labels"),
        (("testbed", "--method", "luck"), "no such detector"),
        ((tiny_folder, "--labels", tmp_path / "none.csv"), "none.csv"),
    ):
        code, _, err = call("bench", *arguments, "--run", tmp_path / "run")
        assert code == 2
        assert len(complaints(err)) == 1
        assert message in err
        assert not (tmp_path / "run").exists()


def test_groups_are_the_kinds_and_their_doses():
    """Prompts without a label are in their own group alone; ordinary ones of two kinds stand apart."""
    given = [("verbatim", 30, None), ("verbatim", 100, True), ("word", 12, True)]
    given += [("plain", 1, False), ("red", 1, False)]
    prompts = [Prompt(str(i), str(i), kind, copies, label) for i, (kind, copies, label) in enumerate(given)]
    assert [(g.name, g.memorized, g.ordinary) for g in groups_of(prompts)] == [
        ("memorized", (1, 2), (3, 4)),
        ("verbatim, 30 copies", (0,), (3, 4)),
        ("verbatim, 100 copies", (1,), (3, 4)),
        ("word", (2,), (3, 4)),
        ("memorized, beside plain", (1, 2), (3,)),
        ("memorized, beside red", (1, 2), (4,)),
    ]


def test_a_latex_table_escapes_what_it_is_given():
    row = {"model": "50%_of #1", "group": "memorized", "method": "a_b", "reason": None, "memorized": 1, "ordinary": 1}
    row |= {"auc": 0.5, "auc_low": None, "tpr": 0.25, "tpr_low": None, "behind": 0.0, "behind_low": None}
    table = latex(rankings_of([row | {"evaluations": 1.0, "ratio": None}]))
    assert r"50\%\_of \#1" in table
    assert r"a\_b & 0.500 & 0.250 & 0.000 & 1.000 & – \\" in table
