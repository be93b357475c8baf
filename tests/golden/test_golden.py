"""The comparison of two recordings, on made-up ones, and the recording of a made-up program."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from golden import COMMANDS, HERE, Difference, Program, Renamed, compare, main
from unmemorize.cli import app

NOTHING = Renamed({}, {}, {})


def write_table(recording, **columns):
    """The recording's table: a score a prompt, but for the columns given."""
    table = {"id": ["a", "b", "c"], "score": [0.5, float("nan"), 3.25]} | columns
    pq.write_table(pa.table(table), recording / "detect" / "run" / "detect.parquet")


@pytest.fixture
def recordings(tmp_path):
    """Two equal recordings of a command, in two folders."""
    old, new = tmp_path / "old", tmp_path / "new"
    run = old / "detect" / "run"
    run.mkdir(parents=True)
    write_table(old)
    (run / "run.json").write_text(json.dumps({"status": "finished", "seconds": 3, "limits": [{"low": 0.25}, None]}))
    (old / "detect" / "printed.txt").write_text('[{"score": 0.5}]\nmodel\n')
    (run / "report.html").write_text("<p>")
    save_file({"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}, run / "edit.safetensors")
    Image.new("RGB", (4, 3), (10, 20, 30)).save(run / "picture.png")
    shutil.copytree(old, new)
    return old, new


def test_equal_recordings_do_not_differ(recordings, capsys):
    """A copy has no difference, and the program's exit code says so."""
    assert compare(*recordings, NOTHING) == []
    assert main(["compare", *map(str, recordings)]) == 0
    assert capsys.readouterr().out == ""


def test_a_number_off_by_more_than_the_tolerance_differs(recordings, capsys):
    """1e-5 is a difference and 1e-7 is none: of numbers near 1, in a table, a JSON, a tensor and printed JSON."""
    old, new = recordings
    run = new / "detect" / "run"
    for off, count in ((1e-7, 0), (1e-5, 4)):
        write_table(new, score=[0.5 + off, float("nan"), 3.25])
        (run / "run.json").write_text(json.dumps({"status": "finished", "limits": [{"low": 0.25 + off}, None]}))
        (new / "detect" / "printed.txt").write_text(f'[{{"score": {0.5 + off}}}]\nmodel\n')
        weight = np.arange(6, dtype=np.float32).reshape(2, 3)
        weight[0, 1] += off
        save_file({"weight": weight}, run / "edit.safetensors")
        assert len(compare(old, new, NOTHING)) == count
    assert main(["compare", str(old), str(new)]) == 1
    assert "detect/run/detect.parquet: score[0]: 0.5 -> 0.50001\n" in capsys.readouterr().out


def test_a_column_has_one_line(recordings):
    """Of a column the first difference is shown, with how many more there are."""
    old, new = recordings
    write_table(new, score=[1.5, 1.0, 3.5])
    assert compare(old, new, NOTHING) == [Difference("detect/run/detect.parquet: score[0] and 2 more", 0.5, 1.5)]


def test_small_probabilities_are_compared_by_their_ratio(recordings):
    """Far below the tolerance a score may change, a p-value may not."""
    old, new = recordings
    write_table(old, score=[3e-8, 0.5, 1.0], p_value=[3e-8, 0.5, 1.0])
    write_table(new, score=[4e-8, 0.5, 1.0], p_value=[4e-8, 0.5, 1.0])
    assert compare(old, new, NOTHING) == [Difference("detect/run/detect.parquet: p_value[0]", 3e-8, 4e-8)]


def test_a_string_is_not_its_number(recordings):
    """A value of another type differs, and so does another text."""
    old, new = recordings
    write_table(new, id=["a", "b", "d"])
    (new / "detect" / "run" / "run.json").write_text('{"status": "running", "limits": [{"low": "0.25"}, null]}')
    assert [(d.old, d.new) for d in compare(old, new, NOTHING)] == [
        ("c", "d"),
        ("finished", "running"),
        (0.25, "0.25"),
    ]


def test_a_renamed_column_is_matched(recordings):
    """Two differences without the mapping; with it none, and the values are still compared."""
    old, new = recordings
    scores = [0.5, float("nan"), 3.25]
    table = {"id": ["a", "b", "c"], "gap": scores}
    pq.write_table(pa.table(table), new / "detect" / "run" / "detect.parquet")
    assert [d.where.split(": ")[1] for d in compare(old, new, NOTHING)] == ["score", "gap"]
    renamed = Renamed({"score": "gap"}, {}, {})
    assert compare(old, new, renamed) == []  # in what was printed the name is the old one
    pq.write_table(pa.table(table | {"gap": [0.5, 2.0, 3.25]}), new / "detect" / "run" / "detect.parquet")
    assert len(compare(old, new, renamed)) == 1
    dropped = Renamed({"score|gap": None}, {}, {})
    assert compare(old, new, dropped) == []


def test_a_missing_file_is_a_difference(recordings):
    """On either side, of any kind; a renamed one is matched by its pattern."""
    old, new = recordings
    (new / "detect" / "run" / "report.html").unlink()
    assert compare(old, new, NOTHING) == [Difference("detect/run/report.html", "there", "missing")]
    (new / "detect" / "run" / "page.html").write_text("<p>")
    assert len(compare(old, new, NOTHING)) == 2
    assert compare(old, new, Renamed({}, {r"(.*)/report\.html": r"\1/page.html"}, {})) == []
    assert compare(new, old, Renamed({}, {r".*\.html": None}, {})) == []


def test_a_pixel_is_a_difference(recordings):
    """One colour of one pixel off by one."""
    old, new = recordings
    path = new / "detect" / "run" / "picture.png"
    pixels = np.array(Image.open(path))
    pixels[2, 1, 0] += 1
    Image.fromarray(pixels).save(path)
    where = "detect/run/picture.png: pixels[2, 1, 0], 1 of 36 differ"
    assert compare(old, new, NOTHING) == [Difference(where, 10, 11)]


def test_times_are_left_out(recordings):
    """A field that is left out by name may differ, or be on one side only."""
    old, new = recordings
    text = '{"status": "finished", "started": "now", "limits": [{"low": 0.25}, null]}'
    (new / "detect" / "run" / "run.json").write_text(text)
    assert compare(old, new, NOTHING) == []


PROGRAM = """
import json, pathlib, sys
if sys.argv[1] == "testbed":
    of_rows = {"kind": "verbatim", "doses": [30, 300, 100, 0]}
    for name in ("images", "controls"):
        images = pathlib.Path(sys.argv[3]) / name
        images.mkdir(parents=True)
        rows = [{"file_name": f"{i}.png", "text": f"picture {i}", **of_rows} for i in range(9)]
        for row in rows:
            (images / row["file_name"]).touch()
        (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
elif sys.argv[1] == "data" and not pathlib.Path("../readable").exists():
    sys.exit("nothing to read")
print(json.dumps(sys.argv[1:]))
"""


def test_a_recording_goes_on_where_it_stopped(tmp_path, capsys):
    """What failed is run again, what is there is not, and options have the names of the checkout."""
    package = tmp_path / "src" / "unmemorize"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PROGRAM)
    (tmp_path / "renamed.json").write_text('{"columns": {}, "files": {}, "options": {"--out": "--rows"}}')
    folder = tmp_path / "recording"
    options = ("--only", "data", "explain", "--src", tmp_path / "src", "--renamed", tmp_path / "renamed.json")
    arguments = ["record", *map(str, (folder, *options))]
    assert main(arguments) == 1
    assert "data: exit code 1\nnothing to read" in capsys.readouterr().out
    (folder / "readable").touch()
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("data: ")
    printed = json.loads((folder / "data" / "printed.txt").read_text())
    assert printed == ["data", "../inputs/pictures", "--run", "run", "--rows", "keep.parquet", "--json"]
    printed = json.loads((folder / "explain" / "printed.txt").read_text())
    assert printed[:3] == ["explain", "testbed", "oncoming taxi"]


def test_another_checkout_than_the_named_one_is_refused(tmp_path):
    """Where the folder holds no package, Python would run the installed one."""
    with pytest.raises(SystemExit, match="does not run"):
        main(["record", str(tmp_path / "recording"), "--src", str(tmp_path)])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_typed(name):
    """With the names of this checkout, by this checkout's own command line."""
    program = Program("python", Path("src"), Renamed.load(HERE / "renamed.json").options)
    app.parse_args(shlex.split(program.renamed(COMMANDS[name])), exit_on_error=False, print_error=False)
