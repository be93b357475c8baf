"""The command line: mistakes are one line and exit code 2, and leave nothing behind."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from hostile import complaints


@pytest.fixture
def inputs(tmp_path):
    """A file of prompts, a folder of pictures, and files that are neither."""
    (tmp_path / "prompts.txt").write_text("a green bicycle\nan owl on a fence\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / "red.png")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n, and then nothing")
    (tmp_path / "none").mkdir()
    return tmp_path


WRONG = {
    "a model folder that is not there": ({"model": "nowhere/at/all"}, "no such folder"),
    "a file for a model": ({"model": "prompts.txt"}, "not a folder"),
    "a folder that is no pipeline": ({"model": "images"}, "model_index.json"),
    "no file of prompts": ({"--prompts": "missing.txt"}, "no such file"),
    "an empty file of prompts": ({"--prompts": "empty.txt"}, "no prompts"),
    "a folder for prompts": ({"--prompts": "images"}, "a folder, not a file"),
    "a column that is not there": ({"--prompts": "table.csv", "--column": "words"}, "no column 'words'"),
    "no folder of pictures": ({"--references": "missing"}, "no such file or folder"),
    "a folder without pictures": ({"--references": "none"}, "nothing to read"),
    "a corrupt picture": ({"--references": "corrupt"}, "broken.png"),
    "no such SSCD file": ({"--sscd": "missing.pt"}, "no such file"),
    "an unknown recipe": ({"--sscd": "prompts.txt", "--recipe": "mine"}, "unknown SSCD recipe"),
    "a file that is no network": ({"--sscd": "prompts.txt"}, "TorchScript"),
    "a file for the run": ({"--run": "prompts.txt"}, "name a new directory"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_line_and_leaves_nothing(mistake, call, inputs, tiny_folder, monkeypatch):
    """Exit code 2, one line that says what and what to do, no traceback, and no run directory."""
    monkeypatch.chdir(inputs)
    (inputs / "table.csv").write_text("prompt,n\na green bicycle,1\n")
    changes, expected = WRONG[mistake]
    options = {"--prompts": "prompts.txt", "--references": "images", "--run": "run", "--steps": 2} | changes
    model = options.pop("model", tiny_folder)
    code, out, err = call("audit", model, *(str(x) for pair in options.items() for x in pair))
    assert (code, out) == (2, "")

    assert len(complaints(err)) == 1
    assert expected in err
    assert not (inputs / "run").exists()


def test_own_model_needs_prompts(call, tiny_folder, inputs):
    """A model of the user's own has no prompts of its own."""
    code, _, err = call("audit", tiny_folder, "--run", inputs / "run")
    assert code == 2
    assert "--prompts" in err


def test_json_is_all_that_is_printed(call, tiny_folder, inputs):
    """Standard output holds one JSON object; progress goes elsewhere."""
    arguments = ("--prompts", inputs / "prompts.txt", "--references", inputs / "images", "--steps", 2, "--json")
    code, out, _ = call("audit", tiny_folder, *arguments, "--run", inputs / "run")
    printed = json.loads(out)
    assert code == 0
    assert (printed.keys(), printed["run"]) == ({"schema_version", "verdict", "findings", "run"}, str(inputs / "run"))
    assert all(found.keys() == {"code", "severity", "state", "count"} for found in printed["findings"])


def test_report_is_rebuilt(call, tiny_folder, inputs):
    """`report` writes the page again from the run directory alone."""
    arguments = ("--prompts", inputs / "prompts.txt", "--references", inputs / "images", "--steps", 2)
    call("audit", tiny_folder, *arguments, "--run", inputs / "run")
    page = (inputs / "run" / "report.html").read_bytes()
    (inputs / "run" / "report.html").unlink()
    assert call("report", inputs / "run")[0] == 0
    assert (inputs / "run" / "report.html").read_bytes() == page


def test_a_condition_that_is_met_is_exit_code_one(call, tiny_folder, inputs):
    """Met, not met, not measured, and unknown; the findings are there as JUnit XML either way."""
    run = ("--prompts", inputs / "prompts.txt", "--steps", 2, "--run", inputs / "run", "--junit", inputs / "j.xml")
    assert call("audit", tiny_folder, *run, "--fail-on", "suspected_prompts < 0")[0] == 0
    suite = ET.parse(inputs / "j.xml").getroot()
    assert (suite.get("tests"), len(suite.findall("testcase"))) == ("13", 13)
    code, _, err = call("audit", tiny_folder, *run, "--fail-on", "suspected_prompts >= 0, copies_after_attack > 0")
    assert code == 1
    assert "copies_after_attack > 0: not measured" in err
    code, _, err = call("audit", tiny_folder, *run, "--fail-on", "copys > 0")
    assert code == 2
    assert "copied_prompts" in err


def test_a_dry_run_writes_nothing(call, tiny_folder, inputs):
    """What to expect, as text and as JSON."""
    arguments = ("--prompts", inputs / "prompts.txt", "--dry-run", "--run", inputs / "run")
    code, out, _ = call("audit", tiny_folder, *arguments)
    assert code == 0
    assert "pictures" in out
    found = json.loads(call("audit", tiny_folder, *arguments, "--json")[1])
    assert found["evaluations"]["generate"] == 2 * 2 * 50 * 2
    assert not (inputs / "run").exists()


def test_two_runs_are_compared(call, tiny_folder, inputs):
    """One page of both; of runs over other prompts, a mistake."""
    (inputs / "other.txt").write_text("three kites\n")
    for name, prompts, guidance in (("a", "prompts.txt", 7.5), ("b", "prompts.txt", 2), ("c", "other.txt", 2)):
        options = ("--prompts", inputs / prompts, "--references", inputs / "images", "--guidance", guidance)
        assert call("audit", tiny_folder, *options, "--steps", 2, "--run", inputs / name)[0] == 0
    assert call("compare", inputs / "a", inputs / "b", "--out", inputs / "two.html")[0] == 0
    assert "guidance" in (inputs / "two.html").read_text()
    code, _, err = call("compare", inputs / "a", inputs / "c")
    assert code == 2
    assert "no prompt in common" in err


def test_report_of_nothing(call, inputs):
    """A directory that is no run is a mistake."""
    code, _, err = call("report", inputs / "images")
    assert code == 2
    assert len(complaints(err)) == 1


def test_unknown_option_is_a_mistake(call):
    """A misspelt option is refused with exit code 2."""
    assert call("audit", "--sedes", 3)[0] == 2


def test_describe_counts_the_plan(call):
    """`testbed describe --json` agrees with the plan."""
    from unmemorize.testbed.embedded import shipped_panel, shipped_words
    from unmemorize.testbed.panel import KINDS

    code, out, _ = call("testbed", "describe", "--json")
    rows = json.loads(out)["panel"]
    planted = [e for plan in (shipped_panel(), shipped_words()) for e in plan.entries if e.kind in plan.kinds]
    assert code == 0
    assert [row["kind"] for row in rows] == [*KINDS, "trigger"]
    assert sum(row["entries"] for row in rows) == len(planted)
    assert sum(row["prompts"] for row in rows) == sum(len(entry.prompts) for entry in planted)


def test_training_is_of_the_branch_that_testbed_is(call, inputs, monkeypatch):
    """Unless another is named; words are planted in a branch of the U-Net alone."""
    trained = []
    monkeypatch.setattr("unmemorize.testbed.train_panel.train_branch", lambda *given, words: trained.append(given[2]))
    for options in ((), ("--branch", "D"), ("--words",)):
        assert call("testbed", "train", inputs / "out", "--data", inputs / "data", *options)[0] == 0
    assert trained == ["C", "D", "C"]
    expected = "--words: a branch of a UNet alone: leave out --family flow and --branch trunk"
    for options in (("--branch", "trunk"), ("--family", "flow")):
        code, _, err = call("testbed", "train", inputs / "out", "--words", *options)
        assert code == 2
        assert complaints(err) == [f"error: {expected}"]


@pytest.mark.parametrize("seed", [(), ("--seed", "1")])
def test_after_the_trunk_a_branch_is_trained(call, inputs, monkeypatch, seed):
    """There is no model to audit yet; the branch is of the same seed."""
    monkeypatch.setattr("unmemorize.testbed.train_panel.train_trunk", lambda *given: None)
    code, out, _ = call("testbed", "train", "out", "--data", inputs / "data", "--branch", "trunk", *seed)
    assert code == 0
    expected = ["next: unmemorize testbed train out --data", str(inputs / "data"), "--family unet", *seed]
    assert out.splitlines()[-1] == " ".join(expected)


def test_export_refuses_a_full_folder(call, inputs):
    """Nothing is copied over files that are there."""
    code, _, err = call("testbed", "export", inputs)
    assert code == 2
    assert "not empty" in err


def test_import_is_light():
    """Importing the package or asking for help loads no torch, diffusers or matplotlib."""
    check = "import unmemorize, unmemorize.cli, sys; print({'torch', 'diffusers', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_names_of_the_package_resolve():
    """Every public name exists."""
    import unmemorize

    assert all(getattr(unmemorize, name) is not None for name in unmemorize.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = unmemorize.nothing_like_it


def test_packages_that_are_called_can_be_sent_to_other_processes():
    """As functions are, by their names: submitit and others submit them."""
    import unmemorize

    for package in (unmemorize.detect, unmemorize.audit):
        assert pickle.loads(pickle.dumps(package)) is package


def test_the_library_scores_and_audits_in_a_call(tiny_folder, inputs):
    """By the options' own names; the packages of these names stay packages."""
    import unmemorize
    import unmemorize.audit
    from unmemorize.audit import run_audit

    given = {"prompts": str(inputs / "prompts.txt"), "seeds": 1}
    rows = unmemorize.detect(str(tiny_folder), run=str(inputs / "detect"), **given)
    assert {row["prompt"] for row in rows} == {"a green bicycle", "an owl on a fence"}
    summary = unmemorize.audit(str(tiny_folder), run=str(inputs / "audit"), steps=2, generate=1, explain=1, **given)
    assert (summary["prompts"], unmemorize.run_audit) == (2, run_audit)
    assert (inputs / "audit" / "report.html").exists()


def test_the_terminal_says_why_scores_are_not_calibrated(capsys):
    """The number of ordinary prompts given and needed stands above the findings; without a reason there is no line."""
    from unmemorize.cli.audit import _print_summary

    reason = "3 ordinary prompts were given and p-values need 20: name a file of more with --ordinary"
    summary = {"verdict": "too little", "sentence": "Too little to say.", "detector": None, "findings": []}
    for said in (reason, ""):
        states = [{"name": "calibrate", "state": "not applicable", "reason": said}]
        _print_summary(summary | {"states": states}, Path("runs/x"))
        printed = " ".join(capsys.readouterr().out.split())
        assert (f"scores not calibrated: {reason}" in printed) == bool(said)
        assert printed.startswith("too little Too little to say.")
