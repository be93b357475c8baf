"""The rankings of detectors and mitigations: groups, numbers, costs, what does not apply, what a killed run keeps."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hostile import complaints
from pipelines import tiny
from unmemorize.core.errors import NotApplicable
from unmemorize.core.sample import Sampler, generate
from unmemorize.data.pictures import save_image
from unmemorize.data.source import Prompt
from unmemorize.metrics.ranking import auc, cluster_bootstrap, tpr_at_fpr
from unmemorize.models.load import load
from unmemorize.report.bench import contests_of, latex, rankings_of
from unmemorize.stages.rank import groups_of

WORDS = ("owl", "boat", "kite", "harbour", "bicycle", "fence", "field", "dusk", "gadget", "lighthouse", "oden", "red")
CASCADE = "cascade:screen=noise-gap,then=mid-noise,share=0.99"
METHODS = ("--method", "noise-gap", "--method", CASCADE)
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
    for column, method in enumerate(("noise-gap", CASCADE)):
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
    assert rows["memorized", CASCADE]["evaluations"] == pytest.approx(1 + 3 * passed)
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


def test_detectors_are_fitted_to_the_ordinary_prompts_that_are_named(call, tiny_folder, labelled, tmp_path):
    (tmp_path / "ordinary.txt").write_text("\n".join(f"a plain thing {i}" for i in range(20)))
    arguments = ("bench", tiny_folder, "--labels", labelled, "--method", "two-probe", "--seeds", 1, "--steps", 2)
    run = tmp_path / "run"
    code, _, err = call(*arguments, "--ordinary", tmp_path / "ordinary.txt", "--run", run)
    assert code == 0, err
    (model,) = (run / "models").iterdir()
    assert len(pq.read_table(model / "scores" / "plain.parquet")) == 20
    assert json.loads((model / "run.json").read_text())["data"]["ordinary"]["count"] == 20


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
        (("testbed", "--attack", "dori"), "--attack is for mitigations"),
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


@pytest.fixture
def copied(tiny_folder, tmp_path):
    """Options that name two pictures which the model makes of their captions, four others, and ordinary prompts."""
    captions = ["an owl on a fence", HOSTILE]
    model = load(str(tiny_folder))
    for k, picture in enumerate(generate(model, model.encode(captions), seeds=[100, 100], sampler=Sampler(2))):
        for folder in ("targets", "references"):
            save_image(picture.float(), tmp_path / folder / f"{k}.png")
            (tmp_path / folder / f"{k}.txt").write_text(captions[k])
    for k, picture in enumerate(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))):
        save_image(picture, tmp_path / "references" / f"other-{k}.png")
    (tmp_path / "ordinary.txt").write_text("\n".join(f"a plain thing {k}" for k in range(6)))
    places = {"--targets": "targets", "--references": "references", "--ordinary": "ordinary.txt"}
    named = [word for option, place in places.items() for word in (option, tmp_path / place)]
    return ("bench", tiny_folder, "--kind", "mitigation", *named, "--pictures", 1, "--steps", 2)


def test_mitigations_are_tried_on_the_same_pictures(call, copied, tmp_path):
    """What is left by hand from the table; the model as it came first; what never acts changes nothing."""
    run = tmp_path / "run"
    methods = ("embedding-noise:scale=50", "guard:threshold=1e5,target=1")
    named = [word for method in methods for word in ("--method", method)]
    code, out, err = call(*copied, *named, "--run", run, "--json")
    assert code == 0, err
    (found,) = json.loads(out)["models"].values()
    rows = {row["method"]: row for row in found["ranking"]}
    assert list(rows) == ["none", *methods]
    assert rows["none"]["copies"] == rows[methods[1]]["copies"] == 1
    assert rows[methods[0]]["copies"] == 0
    assert rows[methods[0]]["fall"] == -1
    assert [rows[name]["changed"] for name in rows] == [0, 1, 0]
    assert rows["none"]["likeness"] == pytest.approx(1)
    assert rows[methods[0]]["likeness"] < 0.9
    assert (rows["none"]["pictures"], rows["none"]["ordinary"]) == (2, 3)
    assert rows["none"]["evaluations"] == 4
    assert rows["none"]["alignment"] is None  # no model of ours knows how this one's pictures fit their prompts
    page, tex = ((run / name).read_text() for name in ("report.html", "table.tex"))
    assert "<script>" not in page
    assert "embedding-noise:scale=50 leaves fewest copies" in page
    assert tex.count(r"\end{tabular}") == 1
    assert call(*copied, *named, "--run", run, "--json")[1] == out
    code, out, _ = call(*copied, *named, "--run", run)
    assert code == 0
    assert out.splitlines()[-1].endswith("--mitigation embedding-noise:scale=50")


def test_a_mistake_about_mitigations_is_one_line(call, copied, labelled, tmp_path):
    for place in (tmp_path / "targets").glob("*.png"):
        place.write_bytes((tmp_path / "references" / "other-0.png").read_bytes())
    for asked, says in (
        (("--labels", labelled), "--labels is for detectors"),
        (("--method", "guard", "--method", "guard"), "--method guard: is named twice"),
        (("--method", "none"), "--method none: is named twice, or stands for no mitigation"),
        (("--method", "noise-gap"), "no such mitigation"),
        (("--method", "guard:limit=3"), "guard: no setting 'limit'"),
        (("--attack", "hammer"), "hammer"),
        (("--attack", "dori", "--dry-run"), "--dry-run: an attack is not counted"),
        (("--method", "random-words"), "none of 2 pictures is copied from its caption"),
    ):
        code, _, err = call(*copied, *asked, "--run", tmp_path / "wrong")
        assert code == 2
        assert len(complaints(err)) == 1
        assert says in err


def test_a_mitigation_that_does_not_apply_has_a_reason():
    """It stands apart from those that were tried; the model as it came stays first, whatever the others leave."""
    row = {"model": "m", "reason": None, "alignment": None, "likeness": 1.0, "attack_knows_it": None}
    rows = [row | {"method": "none", "copies": 0.1}, row | {"method": "worse", "copies": 0.5}]
    rows += [row | {"method": "better", "copies": 0.0}, {"model": "m", "method": "other", "reason": "no attention"}]
    (contest,) = contests_of(rows)
    assert [row["method"] for row in contest.methods] == ["none", "better", "worse"]
    assert [row["method"] for row in contest.not_applicable] == ["other"]


def test_settings_of_a_method_make_a_curve():
    """Its area is over what each loses of the alignment and leaves of the copies; none where no alignment is known."""
    row = {"model": "m", "reason": None, "alignment": 0.0, "likeness": 1.0, "attack_knows_it": None}
    rows = [row | {"method": "none", "copies": 0.8}]
    rows += [
        row | {"method": f"guard:under={under}", "copies": copies, "alignment": lost}
        for under, copies, lost in ((0.5, 0.4, -0.05), (0.0, 0.0, -0.15))
    ]
    rows.append(row | {"method": "sail", "copies": 0.8, "alignment": 0.01})
    (contest,) = contests_of(rows)
    assert contest.curves == [("guard", 2, pytest.approx((0.05 + 0.5 * 0.1) / 0.25)), ("sail", 1, 1.0)]
    (contest,) = contests_of([row | {"alignment": None} for row in rows])
    assert contest.curves == []


def test_mitigations_are_attacked(call, copied, tiny_folder, tmp_path):
    """Beside as many controls; whether the search meets what a mitigation does; words are none of an embedding's."""
    model, captions = load(str(tiny_folder)), [f"a plain house {k}" for k in range(2)]
    for k, picture in enumerate(generate(model, model.encode(captions), seeds=[7, 8], sampler=Sampler(2))):
        save_image(picture.float(), tmp_path / "controls" / f"{k}.png")
        (tmp_path / "controls" / f"{k}.txt").write_text(captions[k])
    named = ("--method", "embedding-noise:scale=50", "--method", "random-words", "--controls", tmp_path / "controls")
    attacked = {}
    for attack in ("dori:updates=1", "adaptive:starts=1,updates=1"):
        run = tmp_path / attack.partition(":")[0]
        code, out, err = call(*copied, *named, "--attack", attack, "--run", run, "--json")
        assert code == 0, err
        (found,) = json.loads(out)["models"].values()
        attacked[attack] = {row["method"]: row for row in found["ranking"]}
    rows = attacked["dori:updates=1"]
    assert (rows["none"]["attacked"], rows["none"]["control"]) == (1, 0)
    assert (rows["embedding-noise:scale=50"]["attacked"], rows["random-words"]["attacked"]) == (0, None)
    assert [row["attack_knows_it"] for row in rows.values()] == [True, False, False]
    assert [row["attack_knows_it"] for row in attacked["adaptive:starts=1,updates=1"].values()] == [True] * 3
    page, tex = ((run / name).read_text() for name in ("report.html", "table.tex"))
    assert "Copies after the attack" in page
    assert "None of these was attacked" not in page
    assert "its control" in tex
    assert "attacked" in call(*copied, *named, "--attack", attack, "--run", run)[1]


def test_where_no_mitigation_applies_the_methods_are_named_next(call, copied, tmp_path, monkeypatch):
    """There is a table, of the model as it came, and no best one to attack."""

    def refuse(self, text, progress):
        raise NotApplicable("nothing to act on")

    monkeypatch.setattr("unmemorize.stages.contend.Contest.fitted", refuse)
    code, out, err = call(*copied, "--method", "embedding-noise", "--run", tmp_path / "run")
    assert code == 0, err
    assert "embedding-noise: not applicable: nothing to act on" in out
    assert out.splitlines()[-1] == "next: unmemorize methods"
    assert "No mitigation applies to" in (tmp_path / "run" / "report.html").read_text()
