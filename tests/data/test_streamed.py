"""What `datasets` streams: the rows that our own readers find where both read, in the same order, shard by shard."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pictures import draw, png, tar_of
from hostile import complaints
from unmemorize.core.errors import UserError
from unmemorize.core.specs import DataSpec
from unmemorize.data.captions import pieces
from unmemorize.data.source import read_prompts, read_references
from unmemorize.stages.data import audit_data

CAPTIONS = [f"a kite number {i}" for i in range(12)]
LINES = "".join(json.dumps({"caption": text, "n": i}) + "\n" for i, text in enumerate(CAPTIONS))
SIDE = 24


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each format, of two files where that is two shards."""
    pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("folders")
    pictures = [png(draw(i)) for i in range(12)]
    for name in ("parquet", "csv", "jsonl", "tar", "gz", "json", "txt", "zip", "none", "configured"):
        (root / name).mkdir()
    for name, first in (("a", 0), ("b", 6)):
        own = range(first, first + 6)
        lines = "".join(LINES.splitlines(keepends=True)[first : first + 6])
        table = pa.table({"caption": [CAPTIONS[i] for i in own], "image": [pictures[i] for i in own]})
        pq.write_table(table, root / "parquet" / f"{name}.parquet")
        (root / "csv" / f"{name}.csv").write_text("n,caption\n" + "".join(f'{i},"{CAPTIONS[i]}"\n' for i in own))
        (root / "jsonl" / f"{name}.jsonl").write_text(lines)
        (root / "json" / f"{name}.json").write_text(lines)
        (root / "gz" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        (root / "txt" / f"{name}.txt").write_text("\n".join(CAPTIONS[i] for i in own))
        members = [(f"{i:02d}.{end}", part) for i in own
                   for end, part in (("png", pictures[i]), ("txt", CAPTIONS[i].encode()))]  # fmt: skip
        tar_of(root / "tar" / f"{name}.tar", members)
        (root / "configured" / f"{name}.jsonl").write_text(lines)
    (root / "configured" / "README.md").write_text(
        "---\nconfigs:\n- config_name: first\n  data_files:\n  - split: train\n    path: a.jsonl\n"
        "- config_name: second\n  data_files:\n  - split: test\n    path: b.jsonl\n---\n"
    )
    (root / "none" / "a.jsonl").write_text('{"n": 1}\n')
    (root / "pictures").mkdir()
    for i in range(12):
        (root / "pictures" / f"{i:02d}.png").write_bytes(pictures[i])
    listed = [{"file_name": f"{i:02d}.png", "caption": text} for i, text in enumerate(CAPTIONS)]
    (root / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    with zipfile.ZipFile(root / "zip" / "set.zip", "w") as archive:
        for path in sorted((root / "pictures").iterdir()):
            archive.write(path, path.name)
    return root


def rows(source, column=""):
    return [(i.caption, i.problem, i.load and i.load()) for piece in pieces(source, column) for i in piece.items()]


def named(folder, *settings):
    return Path(",".join([f"datasets:{folder}", *settings]))


@pytest.mark.parametrize(
    ("format", "column"), [("parquet", ""), ("csv", ""), ("jsonl", ""), ("tar", "txt"), ("pictures", "")]
)
def test_rows_are_those_of_our_own_readers(format, column, folders):
    assert rows(named(folders / format), column) == rows(folders / format)
    assert [text for text, _, _ in rows(folders / format)] == CAPTIONS


@pytest.mark.parametrize("format", ["gz", "json", "txt", "zip"])
def test_what_only_datasets_reads(format, folders):
    """Of a zip of pictures each is what it is in the folder."""
    expected = rows(folders / ("pictures" if format == "zip" else "jsonl"))
    assert rows(named(folders / format)) == expected
    assert [prompt.text for prompt in read_prompts(named(folders / format))] == CAPTIONS


def test_a_file_is_a_shard_whoever_reads_it_and_in_whichever_order(folders):
    first, second = pieces(named(folders / "gz"))
    late = list(second.items())
    assert [item.id for item in first.items()] == [f"train/00000:{i}" for i in range(6)]
    assert [item.id for item in late] == [f"train/00001:{i}" for i in range(6)]
    again = pieces(named(folders / "gz"))[1]
    assert list(again.items()) == late


def test_pictures_to_compare_with(folders):
    here, there = (read_references(place, (SIDE, SIDE)) for place in (folders / "pictures", named(folders / "zip")))
    assert (here.pixels == there.pixels).all()
    assert here.prompts == there.prompts


def test_an_audit_in_parts_is_that_of_one_process(folders, call, tmp_path):
    """It leaves nothing in a cache, goes on, and is refused once the source has changed."""
    alone, parts = tmp_path / "alone", tmp_path / "parts"
    source = str(named(folders / "gz"))
    assert call("data", source, "--run", alone)[0] == 0
    for part in ("1/2", "0/2"):
        assert call("data", source, "--run", parts, "--part", part)[0] == 0
    for path in alone.rglob("*.parquet"):
        assert path.read_bytes() == (parts / path.relative_to(alone)).read_bytes()
    assert json.loads((alone / "data.json").read_text())["rows"] == 12
    code, _, err = call("data", named(folders / "json"), "--run", alone)
    assert (code, "content of source" in err) == (2, True)


def test_a_configuration_and_a_split_are_named(folders):
    assert [row[0] for row in rows(named(folders / "configured", "name=second"))] == CAPTIONS[6:]
    assert [row[0] for row in rows(named(folders / "configured", "name=second", "split=test"))] == CAPTIONS[6:]


def test_a_path_in_a_table_is_not_followed(folders, tmp_path):
    """A data set may say that a picture is any file of this machine."""
    secret = folders / "pictures" / "00.png"
    (tmp_path / "a.jsonl").write_text(json.dumps({"caption": "a kite", "image": str(secret)}) + "\n")
    (tmp_path / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: caption, dtype: string}\n  - {name: image, dtype: image}\n---\n"
    )
    assert rows(named(tmp_path)) == [(None, "no picture", None)]


def test_damage_is_a_row_and_what_follows_is_read(folders, tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES.splitlines()[0] + "\n")
    (tmp_path / "b.jsonl").write_text(LINES.splitlines()[0] + "\n{broken\n")
    (tmp_path / "c.jsonl").write_text(LINES.splitlines()[1] + "\n")
    found = rows(named(tmp_path))
    assert (found[0][0], found[-1][0]) == (CAPTIONS[0], CAPTIONS[1])
    assert "file cannot be read" in [problem for _, problem, _ in found]


@pytest.mark.parametrize(
    ("folder", "settings", "says"),
    [
        ("jsonl", ["splt=train"], "write datasets:FOLDER or datasets:OWNER/NAME, and ,name= or ,split= after it"),
        ("jsonl", ["split="], "write datasets:FOLDER or"),
        ("nowhere", [], "no such folder: name one, or a hub id (OWNER/NAME)"),
        ("jsonl", ["split=tset"], "`datasets` cannot read it: Bad split: tset"),
        ("configured", [], "Please pick one among the available configs: ['first', 'second']"),
        ("none", [], "no column named prompt, caption, text: it has n; name one with --column"),
    ],
)
def test_mistakes_are_one_line(folder, settings, says, folders, call, tmp_path):
    code, out, err = call("data", named(folders / folder, *settings), "--run", tmp_path / "run")
    assert (code, out) == (2, "")
    (line,) = complaints(err)
    assert says in line
    assert not (tmp_path / "run").exists()


def test_a_run_in_the_source_is_refused(folders, call):
    code, _, err = call("data", named(folders / "jsonl", "split=train"), "--run", folders / "jsonl" / "run")
    (line,) = complaints(err)
    assert (code, "jsonl, which is read" in line) == (2, True)


def test_a_hub_that_does_not_answer_is_asked_once(folders, monkeypatch):
    asked = []

    def silent(self, name):
        asked.append(name)
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", silent)
    with pytest.raises(UserError, match=r"^datasets:owner/name: no such folder, and the hub: no route to host: name a"):
        pieces(Path("datasets:owner/name"))
    assert asked == ["owner/name"]


def test_without_datasets_one_line_says_how_to_install_it(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    code, _, err = call("data", named(tmp_path), "--run", tmp_path.with_name("run"))
    assert code == 2
    (line,) = complaints(err)
    assert 'needs an optional dependency: pip install "unmemorize[datasets]"' in line


def test_what_is_found_in_a_stream_is_found_in_the_folder(folders, tmp_path):
    here, there = (audit_data(DataSpec(source=str(source)), tmp_path / name)
                   for name, source in (("a", folders / "pictures"), ("b", named(folders / "zip"))))  # fmt: skip
    assert (here["pictures"], here["rows"]) == (there["pictures"], there["rows"]) == (12, 12)
