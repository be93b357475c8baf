"""The audit as a whole: what it writes, what it refuses, and that killing it loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import false_discovery_control

from unmemorize.audit import AuditSpec, forecast, run_audit
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, generate
from unmemorize.data import bundle
from unmemorize.data.pictures import read_image, save_image
from unmemorize.data.source import Prompt, read_references
from unmemorize.explain.gradient import Gradient
from unmemorize.metrics.similarity import match_targets
from unmemorize.mitigate.edit import Edit
from unmemorize.models.load import load
from unmemorize.stages.mitigate import mitigations
from unmemorize.stages.mitigations import UNKNOWN, tuned_model
from unmemorize.stages.pictures import choose
from unmemorize.stages.verify import reference_name

STEPS = 3


@pytest.fixture(scope="session")
def inputs(tiny_folder, tmp_path_factory):
    """Thirty prompts, and a folder of pictures with captions beside what the model makes of the first prompt."""
    folder = tmp_path_factory.mktemp("inputs")
    prompts = [f"a red kite number {i}" for i in range(27)] + ["", "x " * 5000, "<b>中文 \u202e\U0001f600</b>"]
    rows = "".join(json.dumps({"prompt": p}) + "\n" for p in prompts)
    (folder / "prompts.jsonl").write_text(rows)
    (folder / "ordinary.txt").write_text("".join(f"a plain boat number {i}\n" for i in range(40)))
    model = load(str(tiny_folder))
    (made,) = generate(model, model.encode(prompts[:1]), seeds=[0], sampler=Sampler(STEPS))
    save_image(made, folder / "images" / "made.png")
    for i in range(6):
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)), folder / "images" / f"{i}.png")
        (folder / "images" / f"{i}.txt").write_text(f"a plain picture number {i}")
    return folder


def spec(inputs, tiny_folder, **changes):
    values = {
        "prompts": str(inputs / "prompts.jsonl"),
        "references": str(inputs / "images"),
        "ordinary": str(inputs / "ordinary.txt"),
        "explain": 3,
        "attack": 2,
        "attack_updates": 2,
        "seeds": 2,
        "steps": STEPS,
    }
    return AuditSpec(**({"model": str(tiny_folder)} | values | changes))


@pytest.fixture(scope="session")
def finished(inputs, tiny_folder, tmp_path_factory):
    """A finished run and its summary."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    return run, run_audit(spec(inputs, tiny_folder), run)


def reproducible(run):
    """Every file of a run that its inputs determine, as bytes."""
    names = ("timing.json", "report.html")
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in names}


def test_a_reproduced_training_picture_is_found(finished):
    """The picture the model makes is called a verbatim copy, with its prompt, seed and training picture."""
    run, summary = finished
    rows = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    found = next(r for r in rows if r["id"] == "00000" and r["seed"] == 0)
    assert (found["verdict"], summary["verdict"]) == ("verbatim", "issue")
    assert found["distance"] < 0.01
    assert (run / found["nearest"]).exists()
    assert (run / "report.html").stat().st_size > 1000


def test_each_file_is_read_once(inputs, tiny_folder, tmp_path, monkeypatch):
    """The prompts, the ordinary ones and the pictures, in all stages together."""
    read = []

    def counted(reader):
        def call(path, *rest):
            read.append(path.name)
            return reader(path, *rest)

        return call

    for name in ("read_prompts", "read_references"):
        monkeypatch.setattr(bundle, name, counted(getattr(bundle, name)))
    run_audit(spec(inputs, tiny_folder, mitigation=("wanda",)), tmp_path / "run")
    assert sorted(read) == ["images", "ordinary.txt", "prompts.jsonl"]
    assert pq.read_table(tmp_path / "run" / "scores" / "attack.parquet").num_rows  # all stages were at work


def test_counts_agree_with_the_files(finished):
    """The summary's counts are those of the tables."""
    run, summary = finished
    rows = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    assert summary["prompts"] == pq.read_table(run / "scores" / "prompts.parquet").num_rows == 30
    assert summary["images"] == len(rows) == len(list((run / "images").iterdir())) == 60
    assert summary["copied_images"] == sum(r["verdict"] != "none" for r in rows)


def test_evaluations_are_those_of_the_denoiser(inputs, tiny_folder, tmp_path, monkeypatch):
    """The reported cost is what a hook on the UNet counts, row by row, and what was forecast."""
    calls = []

    def counted(spec):
        model = load(spec.model)
        model.denoiser.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
        return model

    monkeypatch.setattr("unmemorize.stages.inputs.load_as_asked", counted)
    summary = run_audit(spec(inputs, tiny_folder), tmp_path / "run")
    spent = summary["evaluations"]
    assert sum(spent.values()) == sum(calls)
    exact = {"detect": 2 * 31, "calibrate": 2 * 41, "generate": 60 * 2 * STEPS}
    assert exact.items() <= spent.items()
    explained = pq.read_table(tmp_path / "run" / "scores" / "explain.parquet").to_pylist()
    tried = sum(row["omitted"] is not None for row in explained)
    texts = 2 * tried  # with and without the word: pictures of two seeds, and the magnitude with its empty prompt
    assert tried > 0
    assert spent["explain"] == 3 * 4 + texts * 2 * 2 * STEPS + texts * 2 + tried * 2
    expected = forecast(spec(inputs, tiny_folder))
    assert exact.items() <= expected.evaluations.items()  # of the later stages it only says what is likely
    assert expected.evaluations.keys() == expected.seconds.keys() == spent.keys()
    once = 2 * 2 + len((0, 1, 2)) * 2 * 2 * STEPS  # two updates of two rows, then pictures of two seeds at each point
    rows = pq.read_table(tmp_path / "run" / "scores" / "attack.parquet").to_pylist()
    for name in ("none", "guard", "wanda"):
        own = [r for r in rows if r["mitigation"] == name]
        least = once * len({(r["group"], r["id"]) for r in own})
        more = sum(r["spent"] for r in own) - least
        assert more > 1 if name == "guard" else abs(more) < 1e-6


def test_every_mitigation_is_attacked_beside_controls(finished):
    """The model as it came, guarded and pruned: the same pictures and steps, controls too, and what the tables say."""
    run, summary = finished
    before, guarded, pruned = rows = pq.read_table(run / "scores" / "mitigations.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["none", "guard", "wanda"]
    assert guarded["measuring"] > before["measuring"]
    assert before["quality"] == pytest.approx(1)
    assert pruned["quality"] < 0.999
    assert Edit.load(run / "edits" / "wanda.safetensors").selected > 0
    curve = pq.read_table(run / "scores" / "attack_curve.parquet").to_pylist()
    points = {(r["mitigation"], r["group"], r["steps"]): r["copy_rate"] for r in curve}
    groups = ("memorized", "negative", "never trained")
    assert set(points) == {(m, g, s) for m in ("none", "guard", "wanda") for g in groups for s in (0, 1, 2)}
    for row in rows:
        assert points[row["name"], "memorized", 0] == row["copy_rate"]  # the prompt itself, at the same seeds
        assert points[row["name"], "memorized", 2] == row["copy_rate_attacked"]
        assert row["control_rate_low"] <= row["control_rate"] <= row["control_rate_high"]
    states = {s["name"]: s["state"] for s in summary["states"]}
    assert (states["mitigate"], states["attack"]) == ("done", "done")
    findings = {f["code"]: f["state"] for f in summary["findings"]}
    assert findings["UM005"] == "issue"  # the guard, which the attack never meets
    assert [row["attack_knows_it"] for row in rows] == [True, False, True]
    assert {findings["UM004"], findings["UM006"]} <= {"inconclusive", "issue"}  # two pictures clear nothing
    assert findings["UM002"] == "not applicable"  # no picture has a mask
    attacked = pq.read_table(run / "scores" / "attack.parquet").to_pylist()
    last = [r for r in attacked if r["step"] == 2 and r["verdict"] != "none"]
    for row in rows:
        copied = {g: len({r["id"] for r in last if (r["mitigation"], r["group"]) == (row["name"], g)}) for g in groups}
        assert row["pictures_copied_attacked"] == copied["memorized"]
        assert row["control_pictures_copied"] == max(copied["negative"], copied["never trained"])
        assert row["control_rate"] == points[row["name"], row["control"], 2]


def test_a_model_mitigated_before_is_judged_in_the_same_way(inputs, tiny_folder, tmp_path, monkeypatch):
    """The model itself, given as its own cure, does as the model does, attacked too; it is read three times in all."""
    same = tmp_path / "cured"
    same.symlink_to(tiny_folder)
    read = []
    monkeypatch.setattr(
        "unmemorize.stages.mitigations.load",
        lambda path, **how: (read.append((path, how["device"])), load(path, **how))[1],
    )
    own = {"mitigation": (str(tmp_path / "cured"),), "generate": 2, "explain": 1}
    run_audit(spec(inputs, tiny_folder, **own), tmp_path / "run")
    before, after = pq.read_table(tmp_path / "run" / "scores" / "mitigations.parquet").to_pylist()
    assert after == before | {"name": after["name"]}
    # When the run is opened, by the stage that mitigates and by the one that attacks; never beside the model on a GPU.
    assert read == [(str(tmp_path / "cured"), "cpu")] * 3
    assert "mitigated" in (tmp_path / "run" / "run.json").read_text()


def test_a_model_mitigated_before_and_not_attacked_is_untested(inputs, tiny_folder, tmp_path):
    """Without an attack nothing is said about what hides."""
    same = tmp_path / "cured"
    same.symlink_to(tiny_folder)
    own = {"mitigation": (str(same),), "attack_updates": 0, "generate": 2, "explain": 1}
    summary = run_audit(spec(inputs, tiny_folder, **own), tmp_path / "run")
    findings = {f["code"]: (f["state"], f["count"]) for f in summary["findings"]}
    assert findings["UM005"] == ("issue", 1)
    assert findings["UM004"][0] == findings["UM006"][0] == "not run"


def changed(pipe, part):
    """The pipeline with one component changed."""
    if part == "scheduler":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.02)
    elif part == "layers":
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config, layers_per_block=2)
    else:
        with torch.no_grad():
            next(getattr(pipe, part).parameters()).add_(0.1)
    return pipe


def test_a_tuned_denoiser_takes_the_model_s_place_for_a_block(make_pipe, tiny_folder, tmp_path):
    """In the block the model is the tuned one, by its fingerprint; after it, itself."""
    changed(make_pipe(), "unet").save_pretrained(tmp_path / "tuned")
    model, tuned = load(str(tiny_folder)), load(str(tmp_path / "tuned"))
    own = model.fingerprint
    mitigation = tuned_model(str(tmp_path / "tuned"), model)
    assert mitigation.fingerprint == tuned.fingerprint != own
    with mitigation.applied(Subject(model)) as under:
        assert under.model.fingerprint == tuned.fingerprint
    assert model.fingerprint == own


@pytest.mark.parametrize("part", ["text_encoder", "vae", "scheduler", "layers"])
def test_a_model_that_differs_in_more_than_its_denoiser_is_refused(part, make_pipe, inputs, tiny_folder, tmp_path):
    """One line, before anything is written."""
    changed(make_pipe(), part).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"other: its (denoiser has other layers|text encoder, VAE)") as error:
        run_audit(spec(inputs, tiny_folder, mitigation=(str(tmp_path / "other"),)), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"regions": "gradient"}, "--regions gradient: it does not say regions: choose one of bright-ending, "),
        ({"explainer": "score-map"}, "--explainer score-map: it does not say words: choose one of "),
        ({"regions": "scoremap"}, "'scoremap': no such explainer"),
        ({"attack_method": "dory"}, "'dory': no such attack"),
        ({"method": ("noise",)}, "'noise': no such detector"),
    ],
    ids=str,
)
def test_a_method_that_cannot_be_is_told_before_anything_is_loaded(asked, says, tmp_path):
    with pytest.raises(UserError) as error:
        run_audit(AuditSpec(model=str(tmp_path / "no model"), **asked), tmp_path / "run")
    assert says in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["guard", "prompt-reanchoring:low=2"])
def test_no_rate_of_false_alarms_is_promised_where_nothing_is_known_to_be_ordinary(
    name, inputs, tiny_folder, tmp_path, caplog
):
    """The mitigation is left out, in a line; the others are tried. With limits of its own it promises none."""
    asked = spec(inputs, tiny_folder, ordinary="", mitigation=(name, "random-words"), attack_updates=0, explain=1)
    run_audit(asked, tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "scores" / "mitigations.parquet").to_pylist()
    assert [row["name"] for row in rows] == ["none", "random-words"]
    lines = [record.getMessage() for record in caplog.records if "is not tried" in record.getMessage()]
    assert lines == [f"{name.partition(':')[0]} is not tried: {UNKNOWN}"]


def test_maps_stand_beside_the_pictures_of_explained_prompts(inputs, tiny_folder, tmp_path):
    """Those of the same prompt and seed, written as pictures of their size, and shown in the page."""
    asked = spec(inputs, tiny_folder, generate=3, explain=2, regions="score-map", mitigation=())
    summary = run_audit(asked, tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "scores" / "regions.parquet").to_pylist()
    images = pq.read_table(tmp_path / "run" / "scores" / "images.parquet").to_pylist()
    assert len(rows) == 2 * asked.pictures
    assert {(row["id"], row["seed"]) for row in rows} <= {(row["id"], row["seed"]) for row in images}
    assert summary["evaluations"]["regions"] == len(rows) * 2 * STEPS
    for row in rows:
        assert read_image(tmp_path / "run" / row["map"]).size == (32, 32)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("<b>where</b>") == len(rows)


def test_where_nothing_was_copied_there_is_nothing_to_mitigate(inputs, tiny_folder, tmp_path):
    """No copies: not applicable, which is not a pass, and the run says why."""
    save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(7)), tmp_path / "images" / "a.png")
    changes = {"references": str(tmp_path / "images"), "generate": 1, "explain": 1}
    summary = run_audit(spec(inputs, tiny_folder, **changes), tmp_path / "run")
    states = {s["name"]: (s["state"], s["reason"]) for s in summary["states"]}
    assert states["mitigate"] == states["attack"] == ("not applicable", "nothing was copied")
    findings = {f["code"]: f["state"] for f in summary["findings"]}
    assert [findings[code] for code in ("UM004", "UM005", "UM006", "UM012")] == ["not applicable"] * 4
    assert summary["verdict"] == "too little"


@pytest.mark.parametrize(
    "asked",
    [("prayer",), ("a/x", "b/x"), ("a/none",), ("a/guard",), ("guard", "guard")],
)
def test_mitigations_without_a_name_of_their_own_are_refused(asked, tmp_path, monkeypatch):
    """Unknown methods, and two mitigations of one name."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/x", "b/x", "a/none", "a/guard"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"--mitigation|no such mitigation"):
        mitigations(AuditSpec(mitigation=asked))


@pytest.mark.parametrize("stage", ["generate", "mitigate", "attack"])
def test_killed_in_the_middle_it_ends_with_the_same_bytes(stage, inputs, tiny_folder, finished, tmp_path):
    """kill -9 after a stage's first shard, run again: every reproducible file is the uninterrupted run's."""
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "unmemorize", "audit", str(tiny_folder), "--run", str(run), "--seeds", "2"]
    command += [
        "--prompts",
        str(inputs / "prompts.jsonl"),
        "--references",
        str(inputs / "images"),
        "--steps",
        str(STEPS),
    ]
    command += ["--ordinary", str(inputs / "ordinary.txt"), "--explain", "3", "--attack", "2", "--attack-updates", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (run / "shards" / stage / "000000000.parquet").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    run_audit(spec(inputs, tiny_folder), run)
    assert reproducible(run) == reproducible(finished[0])


def test_a_finished_run_is_not_done_again(inputs, tiny_folder, finished):
    """The same command on a finished run leaves its shards alone and gives the same summary."""
    run, summary = finished
    before = {p: p.stat().st_mtime_ns for p in (run / "shards").rglob("*.parquet")}
    assert run_audit(spec(inputs, tiny_folder), run) == summary
    assert {p: p.stat().st_mtime_ns for p in (run / "shards").rglob("*.parquet")} == before


def test_a_run_with_other_settings_is_refused(inputs, tiny_folder, finished):
    """Scores of two settings never meet in one directory."""
    run, _ = finished
    before = reproducible(run)
    with pytest.raises(UserError, match="other settings"):
        run_audit(spec(inputs, tiny_folder, guidance=2.0), run)
    assert reproducible(run) == before


def test_a_directory_with_other_files_is_refused(inputs, tiny_folder, tmp_path):
    """Nothing is written beside files that are not a run's."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="something else"):
        run_audit(spec(inputs, tiny_folder), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_training_pictures_nothing_is_called_clean(inputs, tiny_folder, tmp_path):
    """Scores alone give the verdict untested, and the report says why."""
    summary = run_audit(spec(inputs, tiny_folder, references="", generate=2), tmp_path / "run")
    assert summary["verdict"] == "untested"
    assert summary["detector"] is None
    states = {state["name"]: state for state in summary["states"]}
    assert [states[name]["state"] for name in ("detect", "verify", "held-out", "attack")] == ["done", *["not run"] * 3]
    assert "--references" in states["verify"]["reason"]
    findings = {f["code"]: f["state"] for f in summary["findings"]}
    assert (findings["UM001"], findings["UM005"], findings["UM011"]) == ("not run",) * 3
    assert findings["UM007"] in ("not applicable", "issue")


def test_scores_are_calibrated_on_prompts_that_are_not_audited(finished):
    """p-values follow from the two tables of scores; adjusted ones are scipy's; the check counts what it says."""
    run, summary = finished
    mean = {name: means(run, name) for name in ("detect", "ordinary")}
    rows = pq.read_table(run / "scores" / "calibrated.parquet").to_pylist()
    known = list(mean["ordinary"].values())
    expected = [(1 + sum(k >= mean["detect"][row["id"]] for k in known)) / 41 for row in rows]
    assert len(rows) == 30
    assert [row["p_value"] for row in rows] == pytest.approx(expected)
    assert [row["q_value"] for row in rows] == pytest.approx(false_discovery_control(expected))
    found = summary["calibration"]
    assert (found["ordinary"], found["tested"], found["smallest_p"]) == (40, 30, 1 / 41)
    assert found["suspected"] == sum(row["q_value"] <= 0.05 for row in rows)


def means(run, name):
    scores = {}
    for row in pq.read_table(run / "scores" / f"{name}.parquet").to_pylist():
        scores.setdefault(row["id"], []).append(row["score"])
    return {key: sum(values) / len(values) for key, values in scores.items()}


def test_curves_begin_with_the_score(finished):
    """The magnitude recorded while generating is, at the first step, what was scored."""
    run, _ = finished
    scores = {(r["id"], r["seed"]): r["score"] for r in pq.read_table(run / "scores" / "detect.parquet").to_pylist()}
    for row in pq.read_table(run / "scores" / "images.parquet").to_pylist():
        assert len(row["curve"]) == STEPS
        assert row["curve"][0] == pytest.approx(scores[row["id"], row["seed"]], rel=1e-3, abs=1e-4)


def test_copied_prompts_are_explained_first(finished, tiny_folder):
    """Words as `explain` finds them, for as many prompts as asked for: those with a copy, the highest score first."""
    run, _ = finished
    rows = pq.read_table(run / "scores" / "explain.parquet").to_pylist()
    texts = {r["id"]: r["prompt"] for r in pq.read_table(run / "scores" / "prompts.parquet").to_pylist()}
    verified = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    copied, score = {r["id"] for r in verified if r["verdict"] != "none"}, means(run, "detect")
    order = sorted(texts, key=lambda key: (key not in copied, -score[key]))[:3]
    assert [row["id"] for row in rows] == [key for key in order if texts[key].strip()]
    for row in rows:
        subject = Subject(load(str(tiny_folder)), Sampler(STEPS))
        found = Gradient().explain(subject, texts[row["id"]], seeds=(0, 1))
        assert row["significance"] == pytest.approx(found.significance, rel=1e-4)
        assert list(zip(row["starts"], row["stops"], strict=True)) == list(found.spans)


def test_copied_prompts_are_generated_without_their_first_word(finished, inputs, tiny_folder):
    """Of the picture that the prompt copied, at the seeds of the audit, judged as if by hand."""
    run, _ = finished
    model = load(str(tiny_folder))
    references = read_references(inputs / "images", model.image_size)
    texts = {r["id"]: r["prompt"] for r in pq.read_table(run / "scores" / "prompts.parquet").to_pylist()}
    verified = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    rows = [r for r in pq.read_table(run / "scores" / "explain.parquet").to_pylist() if r["omitted"] is not None]
    assert rows
    for row in rows:
        words = texts[row["id"]].split()
        first = row["significance"].index(max(row["significance"]))
        assert row["omitted"] == first
        nearest = next(r["nearest"] for r in verified if r["id"] == row["id"] and r["verdict"] != "none")
        target = next(i for i, name in enumerate(references.names) if reference_name(name) == nearest)
        for column, text in (
            ("copies_with", texts[row["id"]]),
            ("copies_without", " ".join(word for word in words if word != words[first])),
        ):
            images = generate(model, model.encode([text] * 2), seeds=[0, 1], sampler=Sampler(STEPS))
            matches = match_targets(images, references[[target] * 2], references)
            assert row[column] == sum(m.verdict != "none" for m in matches)
        assert row["pictures"] == 2
        assert row["begin"] > 0


def test_held_out_pictures_are_compared(inputs, tiny_folder, finished, tmp_path):
    """Mirror images by default, or a folder of as many; every generated picture is counted."""
    _, summary = finished
    assert {row["group"]: row["images"] for row in summary["nearness"]}["all"] == 60
    for i in range(9):
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(90 + i)), tmp_path / "h" / f"{i}.png")
    other = run_audit(spec(inputs, tiny_folder, held_out=str(tmp_path / "h"), generate=2, explain=1), tmp_path / "run")
    assert other["nearness"][0]["held_out"] == "pictures given"
    assert other["nearness"][0]["nearer"] >= 1  # the picture that is a training picture


def test_too_few_ordinary_prompts_do_not_apply(inputs, tiny_folder, tmp_path):
    """Without enough of them there are no p-values, and the run says why."""
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    summary = run_audit(
        spec(inputs, tiny_folder, ordinary=str(tmp_path / "few.txt"), references="", generate=1, explain=1),
        tmp_path / "run",
    )
    state = next(s for s in summary["states"] if s["name"] == "calibrate")
    assert (state["state"], summary["calibration"]) == ("not applicable", None)
    assert "2 ordinary prompts were given and p-values need 20" in state["reason"]
    evidence = {f["code"]: f["evidence"] for f in summary["findings"]}
    assert all(state["reason"] in evidence[code] for code in ("UM007", "UM008", "UM010"))


def test_a_full_plan_is_more_of_the_same():
    """No plan changes what a number means."""
    quick, full = AuditSpec(), AuditSpec(plan="full")
    assert (full.generate, full.pictures, full.explain) > (quick.generate, quick.pictures, 0)
    assert full.attack > quick.attack
    assert set(mitigations(quick)) < set(mitigations(full))
    assert (full.seeds, full.steps, full.guidance) == (quick.seeds, quick.steps, quick.guidance)


def test_prompts_are_generated_by_copies_score_and_spread():
    """Those of known copies, the best-scored half of what is left, then an even spread down to the lowest score."""
    known = [Prompt(f"v{i}", "v", "verbatim", 1) for i in range(3)]
    others = [Prompt(f"o{i}", "o") for i in range(9)]
    scores = torch.arange(12.0, 0.0, -1)[:, None].numpy()
    chosen = [p.id for p in choose(known + others, scores, 9)]
    assert chosen == ["v0", "v1", "v2", "o0", "o1", "o2", "o3", "o5", "o8"]
    assert [p.id for p in choose(known + others, scores, 2)] == ["v0", "v2"]
    assert len(choose(known + others, scores, 100)) == 12
