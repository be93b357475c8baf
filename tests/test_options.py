"""One language on the command line: every option has one name, a text and bounds, and a mistake costs no import."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from hostile import complaints
from unmemorize.cli.app import _texts, app
from unmemorize.cli.mistakes import RENAMED
from unmemorize.cli.terminal import EVERY, _lines, working
from unmemorize.core import specs


def commands(of=app, before=()):
    """Every command, as the words that name it, with its application."""
    for name in of:
        if not name.startswith("-"):
            command = of[name]
            if command.default_command:
                yield (*before, name), command
            yield from commands(command, (*before, name))


COMMANDS = dict(commands())
SPECS = [value for name, value in vars(specs).items() if name.endswith("Spec")]


def test_all_commands_are_looked_at():
    assert len(COMMANDS) > 14
    assert ("testbed", "describe") in COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_json_and_two_examples(words, call):
    """Its help is grouped, and shows two lines that could be typed."""
    names = {name for argument in COMMANDS[words].assemble_argument_collection() for name in argument.names}
    assert "--json" in names
    code, out, _ = call(*words, "--help")
    assert code == 0
    typed = [line for line in out.partition("Examples:")[2].splitlines() if line.startswith("  unmemorize ")]
    assert len(typed) == 2
    assert all(line.split()[1] == words[0] for line in typed)
    assert "Where results go" in out


def test_help_is_grouped_by_what_people_do(call):
    """And says how to complete commands in a shell."""
    code, out, _ = call("--help")
    assert code == 0
    titles = ["Find what", "Explain what", "Remove it", "Prove that", "Training data", "Testbed"]
    places = [out.index(f"─ {title}") for title in titles]
    assert places == sorted(places)
    assert "--install-completion" in out


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_every_setting_has_a_text(spec):
    """What an option is, in its class or in one that this inherits from; and no text is of nothing."""
    assert {field.name for field in fields(spec)} == _texts(spec).keys()


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [(command or "audit", old, new) for old, names in RENAMED.items() for command, new in names.items()],
)
def test_an_old_name_says_the_new_one(command, old, new, call):
    """In one line; the new one is an option of that command."""
    code, out, err = call(command, old, "3")
    assert (code, out) == (2, "")
    assert complaints(err) == [f"error: {old}: this option is called {new} now"]
    assert new.split()[0] in {name for a in COMMANDS[(command,)].assemble_argument_collection() for name in a.names}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_number_has_bounds(words, call):
    """More than 64 bits hold, or fewer than none, is refused by the option's name, and not quoted whole."""
    known = COMMANDS[words].assemble_argument_collection()
    needed = []
    for argument in known:
        if argument.required:
            needed.append(f"{argument.name}=x" if argument.name.startswith("--") else "x")
    for argument in known:
        kinds = {argument.hint, *get_args(argument.hint)}
        if int in kinds:
            for value in (str(2**63), "-1", "9" * 5000):
                code, out, err = call(*words, *needed, f"{argument.name}={value}")
                assert (code, out) == (2, ""), argument.name
                assert argument.name in err
                assert "9" * 201 not in err


WRONG = {
    "a number that is none": (["attack", "--bound", "nan"], "--bound"),
    "a number without end": (["audit", "--guidance", "inf"], "--guidance"),
    "an absurd count": (["audit", "--seeds", "100000000000"], "--seeds"),
    "a seed beyond 64 bits": (["detect", "--seed", str(2**64)], "--seed"),
    "a negative count": (["attack", "--pictures", "-1"], "--pictures"),
    "a share above one": (["locate", "--sparsity", "7"], "--sparsity"),
    "a port": (["inspect", "--port", "65536"], "--port"),
    "no such option": (["audit", "--sedes", "3"], "Did you mean --seeds"),
    "no such command": (["attak"], 'Did you mean "attack"'),
    "a prompt alone": (["explain", "spade suit"], "unmemorize explain testbed 'spade suit'"),
    "neither model nor prompt": (["generate"], "unmemorize generate testbed PROMPT"),
    "a reserved name": (["detect", "testbed-mine"], "kept for shipped models"),
    "a revision of a folder": (["detect", "testbed", "--revision", "v2"], "no hub model"),
    "training offloaded": (["mitigate", "--out", "x", "--offload", "model"], "leave it out"),
    "training in half precision": (["mitigate", "--out", "x", "--dtype", "float16"], "low_memory=true"),
    "a word too many": (["attack", "testbed", "more"], "more"),
    "no place": (["mitigate"], "--out"),
    "twice": (["audit", "--seeds", "1", "--seeds", "2"], "--seeds"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_parser_complains_in_one_line(mistake, call):
    """Exit code 2, and what to type instead."""
    arguments, expected = WRONG[mistake]
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert expected in err


@pytest.mark.parametrize(
    "arguments", [["X"], ["audit", "--X"], ["audit", "--plan", "X"], ["audit", "X", "X"], ["detect", "X"]]
)
def test_hostile_arguments_are_shown_shortened_and_still(arguments, call):
    """No sequence acts on the terminal, and no more than 200 characters are quoted."""
    hostile = "\x1b]0;owned\x07\n[red]" + "x" * 5000
    code, out, err = call(*(a.replace("X", hostile) for a in arguments))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert "x" * 201 not in err
    assert len(err) < 800


def test_mistakes_are_told_before_torch_is_imported(tmp_path):
    """A misspelt file, column, model, option; a run of other settings; a folder that is there."""
    (tmp_path / "prompts.csv").write_text("words\na green bicycle\n")
    (tmp_path / "ordinary.txt").write_text("a boat\n")
    (tmp_path / "run").mkdir()
    record = {"status": "running", "spec": {"seeds": 1, "steps": 16}, "versions": {}, "model": {}, "data": {}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    mistakes = {
        "no such file": ["detect", "--prompts", "nofile.csv"],
        "no column named": ["detect", "--prompts", "prompts.csv"],
        "no such folder": ["audit", "./nowhere"],
        "no such file or folder": ["audit", "--references", "nowhere"],
        "which prompts?": ["audit", "owner/name"],
        "nosscd.pt: no such file": ["audit", "--sscd", "nosscd.pt"],
        "edit.safetensors: no such file": ["attack", "--mitigation", "edit.safetensors"],
        "lora.safetensors: no such file": ["detect", "--lora", "lora.safetensors"],
        "seeds: 1 there, 2 here": ["audit", "--seeds", "2", "--run", "run"],
        "not empty": ["generate", "testbed", "owl", "--out", "."],
    }
    program = """
import json, sys
from unmemorize import cli
for arguments in json.load(sys.stdin):
    sys.argv = ["unmemorize", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        print(stop.code)
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(list(mistakes.values())),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["2"] * len(mistakes) + ["False"], done.stderr
    for line, expected in zip(complaints(done.stderr), mistakes, strict=True):
        assert expected in line


def test_progress_is_a_line_a_minute_in_a_file(capsys):
    """A stage's start and end, and where it is after every minute between."""
    now = [0.0]
    progress = _lines(lambda: now[0])
    for done in range(5):
        progress("train", done, 4)
        now[0] += EVERY / 2
    assert capsys.readouterr().err.splitlines() == ["train: 0 of 4", "train: 2 of 4", "train: 4 of 4"]


def test_an_interrupted_command_says_what_is_kept(capsys, monkeypatch):
    """Exit code 130, and the command that goes on; without a run directory nothing is kept."""
    monkeypatch.setattr(sys, "argv", ["unmemorize", "audit", "--run", "a run"])
    for kept, said in (
        (Path("a run"), "kept in a run; this goes on: unmemorize audit --run 'a run'"),
        (None, "nothing"),
    ):
        with pytest.raises(SystemExit) as stop, working(kept):
            raise KeyboardInterrupt
        assert stop.value.code == 130
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err


def test_a_run_says_what_it_kept_and_what_differs(call, tiny_folder, tmp_path):
    """Stopped after it scored, it goes on from there; with another setting it is refused by that setting's name."""
    (tmp_path / "prompts.txt").write_text("an owl\na green bicycle\n")
    given = ("detect", tiny_folder, "--prompts", tmp_path / "prompts.txt", "--run", tmp_path / "run")
    assert "rows kept" not in call(*given, "--seeds", 1)[2]
    assert "rows kept from before: detect 2, prompts 2" in call(*given, "--seeds", 1)[2]
    for option, said in (("--seeds", "seeds: 1 there, 3 here"), ("--steps", "steps: 50 there, 3 here")):
        code, _, err = call(*given, *([] if option == "--seeds" else ["--seeds", 1]), option, 3)
        assert code == 2
        assert said in complaints(err)[0]
    (tmp_path / "prompts.txt").write_text("an owl\n")
    code, _, err = call(*given, "--seeds", 1)
    assert code == 2
    assert "content of prompts" in complaints(err)[0]


def test_what_was_copied_is_exported(call, tmp_path):
    """Prompts, pictures with the prompt that copied them, and controls; the commands read them as they are."""
    from unmemorize.data.source import read_prompts, read_references

    run = tmp_path / "run"
    for k in range(3):
        (run / "references").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (k, 0, 0)).save(run / "references" / f"{k}.png")
    (run / "scores").mkdir()
    record = {"status": "finished", "spec": {"model": "testbed"}, "versions": {}, "model": {}, "data": {}}
    (run / "run.json").write_text(json.dumps(record))
    rows = [("p0", 0, "none"), ("p1", 1, "verbatim"), ("p1", 1, "none"), ("p2", 1, "template"), ("p2", 2, "none")]
    made = {"seed": 0, "image": "images/0.png"}
    verify = [made | {"id": i, "nearest": f"references/{k}.png", "caption": f"c{k}", "verdict": v} for i, k, v in rows]
    pq.write_table(pa.Table.from_pylist(verify), run / "scores" / "verify.parquet")
    texts = {"p0": "plain", "p1": 'an "owl",\nhere', "p2": "[red]中"}
    prompts = [{"id": i, "prompt": text} for i, text in texts.items()]
    pq.write_table(pa.Table.from_pylist(prompts), run / "scores" / "prompts.parquet")
    code, out, _ = call("export", run, "--out", tmp_path / "copied", "--json")
    assert code == 0
    counts = json.loads(out)
    assert (counts["prompts"], counts["targets"], counts["controls"]) == (2, 1, 2)
    assert [p.text for p in read_prompts(tmp_path / "copied" / "prompts.csv")] == [texts["p1"], texts["p2"]]
    targets = read_references(tmp_path / "copied" / "targets", (8, 8))
    assert targets.names == ("1.png",)
    assert targets.captions == (texts["p1"],)
    assert len(read_references(tmp_path / "copied" / "controls", (8, 8))) == 2
    code, _, err = call("export", run, "--out", tmp_path / "copied")
    assert code == 2
    assert "not empty" in err
    (tmp_path / "secret.png").write_bytes(b"secret")
    for place, said in (("../secret.png", "a picture outside of"), ("references/x.png", "no such file")):
        table = pa.Table.from_pylist([row | {"nearest": place} for row in verify])
        pq.write_table(table, run / "scores" / "verify.parquet")
        code, _, err = call("export", run, "--out", tmp_path / "more")
        assert code == 2
        assert said in complaints(err)[0]
        assert not (tmp_path / "more").exists()
    for name in ("verify", "none"):
        (run / "scores" / "verify.parquet").unlink(missing_ok=True)
        code, _, err = call("export", run, "--out", tmp_path / name)
        assert code == 2
        assert "no audit that compared pictures" in complaints(err)[0]


def test_ctrl_c_ends_a_run_that_the_same_command_continues(tiny_folder, tmp_path):
    """A signal, as the terminal sends it: one line, exit code 130, and the run goes on from what it kept."""
    (tmp_path / "prompts.txt").write_text("".join(f"a red kite number {i}\n" for i in range(200)))
    command = [sys.executable, "-m", "unmemorize", "detect", str(tiny_folder), "--prompts", "prompts.txt"]
    command += ["--run", "run"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit deafness to it
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=heard) as running:
        said = next(line for line in running.stderr if line.startswith("detect: "))
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == 130, said + rest
    assert rest.splitlines()[-1].startswith("stopped: what is done is kept in run; this goes on: unmemorize detect ")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rows kept from before: prompts 200, detect " in done.stderr
    assert done.stdout.splitlines()[-1].startswith("next: unmemorize ")


@pytest.mark.parametrize("command", ["detect", "triggers", "locate"])
def test_a_dry_run_forecasts_what_the_run_takes(command, call, tiny_folder, tmp_path, monkeypatch):
    """As many evaluations as are then counted, the memory that the files of weights say, and nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("an owl on a fence\na green bicycle\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "images" / "red.png")
    given = [command, tiny_folder, "--prompts", tmp_path / "prompts.txt"]
    given += {
        "detect": ["--steps", 2, "--run", "run"],
        "triggers": ["--steps", 2, "--run", "run", "--references", "images", "--pictures", 1, "--repeats", 1],
        "locate": ["--method", "wanda:sparsity=0.1", "--out", "edit.safetensors"],
    }[command]
    code, out, _ = call(*given, "--dry-run", "--json")
    assert code == 0
    expected = json.loads(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "prompts.txt"]
    assert call(*given, "--dry-run")[1].splitlines()[0].split() == ["stage", "evaluations", "seconds"]
    found = json.loads(call(*given, "--json")[1])
    spent = sum(row["evaluations"] for row in found["prompts"]) if command == "detect" else found["evaluations"]
    ((stage, count),) = expected["evaluations"].items()
    assert spent <= count <= spent * 1.5
    assert expected["seconds"][stage] > 0
    parts = {path.parent.name: _bytes_of(path) for path in tiny_folder.glob("*/*.safetensors")}
    assert expected["memory"]["float32"] == pytest.approx(sum(parts.values()) / 1e9)
    assert expected["memory"]["half"] == pytest.approx(sum(parts.values()) / 2e9)
    more = expected["memory"]["training"] - expected["memory"]["float32"]
    assert more == pytest.approx(3 * parts["unet"] / 1e9)  # gradients and two moments


def _bytes_of(path):
    """The weights of a file, which has a header as well."""
    return sum(tensor.numel() * tensor.element_size() for tensor in load_file(path).values())


@pytest.mark.parametrize(
    "command", ["explain", "explain --check", "explain --method curvature-map", "generate", "check"]
)
def test_a_dry_run_of_one_prompt_or_picture_forecasts_it(command, call, tiny_folder, tmp_path, monkeypatch):
    """From one seed, picture or file: exactly as many evaluations as are then counted, and nothing written."""
    monkeypatch.chdir(tmp_path)
    for i in range(22):
        (tmp_path / "shots").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (i * 9, 40, 200 - i)).save(tmp_path / "shots" / f"{i}.png")
    name, *options = command.split()
    given = [name, tiny_folder]
    given += ["shots/1.png", "--controls", "shots"] if name == "check" else ["an owl on a fence", "--steps", 2]
    given += {"explain": ["--seeds", 3], "generate": ["--pictures", 3], "check": ["--seeds", 2]}[name] + options
    code, out, err = call(*given, "--dry-run", "--json")
    assert code == 0, err
    expected = json.loads(out)
    assert [path.name for path in tmp_path.iterdir()] == ["shots"]
    code, out, err = call(*given, "--json")
    assert code == 0, err
    spent = 3 * 2 * 2 if name == "generate" else json.loads(out)["evaluations"]
    assert sum(expected["evaluations"].values()) == spent
    assert min(expected["seconds"].values()) > 0


def test_a_dry_run_counts_what_a_mitigation_measures_first(call, tiny_folder, tmp_path):
    """The guard's two evaluations an ordinary prompt, from those of one and of two; none where limits are given."""
    (tmp_path / "ordinary.txt").write_text("\n".join(f"a plain thing {i}" for i in range(30)))
    given = ("generate", tiny_folder, "an owl on a fence", "--steps", 2, "--pictures", 3, "--dry-run", "--json")
    expected = {}
    for method in ("static-transition", "guard", "guard:threshold=1e5,target=1"):
        code, out, err = call(*given, "--mitigation", method, "--ordinary", tmp_path / "ordinary.txt")
        assert code == 0, err
        expected[method] = json.loads(out)["evaluations"]
    assert expected["static-transition"] == {"generate": 3 * 2 * 2}
    assert expected["guard"]["fit"] == 2 * 30
    assert expected["guard"]["generate"] >= 3 * (2 * 2 + 2)
    assert expected["guard:threshold=1e5,target=1"] == {"generate": 3 * (2 * 2 + 2)}
    assert call(*given, "--mitigation", "guard")[0] == 2  # as without a dry run: nothing says what is ordinary


def test_a_dry_run_of_a_ranking_forecasts_it(call, tiny_folder, tmp_path, monkeypatch):
    """Of detectors what scoring takes, to the evaluation; of mitigations fits and pictures, two of which are made."""
    monkeypatch.chdir(tmp_path)
    lines = [f"an owl on fence {i},{i % 2}" for i in range(24)]
    (tmp_path / "labels.csv").write_text("\n".join(["prompt,memorized", *lines]))
    given = ["bench", tiny_folder, "--labels", "labels.csv", "--method", "noise-gap", "--method", "max-z", "--steps", 2]
    code, out, err = call(*given, "--dry-run", "--json")
    assert code == 0, err
    expected = json.loads(out)
    assert (expected["items"], list(expected["evaluations"])) == (24, ["trial", "plain", "detect"])
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
    assert call(*given, "--run", "run")[0] == 0
    (table,) = tmp_path.glob("run/models/*/scores/detect.parquet")
    assert expected["evaluations"]["detect"] == sum(pq.read_table(table)["evaluations"].to_pylist())
    given = ["bench", "testbed", "--kind", "mitigation", "--method", "guard", "--steps", 2, "--pictures", 1]
    code, out, err = call(*given, "--method", "static-transition", "--dry-run", "--json")
    assert code == 0, err
    spent = json.loads(out)["evaluations"]
    copied, ordinary, calibrating = 48, 24, 201
    assert spent["static-transition"] == (copied + ordinary) * 4
    assert spent["none"] == (copied + 2 * ordinary) * 4
    assert spent["guard"] >= 2 * calibrating + (copied + ordinary) * 6


def test_a_dry_run_of_an_attack_forecasts_it(call, tmp_path):
    """On the testbed: as many evaluations as are then counted, by one picture's one update."""
    given = ("attack", "testbed", "--limit", 1, "--updates", 2, "--pictures", 1, "--steps", 2, "--restarts", 2)
    code, out, err = call(*given, "--run", tmp_path / "run", "--dry-run", "--json")
    assert code == 0, err
    expected = json.loads(out)
    assert expected["items"] == 13  # a picture, and six of either control
    # Each picture: two restarts of two updates of eight rows; four pictures of four evaluations, and its own prompt's.
    assert expected["evaluations"] == {"attack": 13 * (2 * 2 * 8 + (2 * 2 + 1) * 4)}
    assert not (tmp_path / "run").exists()
    code, _, err = call("attack", "testbed", "--method", "adaptive", "--dry-run")
    assert code == 2
    assert "adaptive has no update to time" in complaints(err)[0]
