"""Prompts, tables and tars on object storage: the rows of a disk, from a server on this machine."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileType

from data_pictures import draw, folder_of, png, tar_of
from hostile import complaints
from unmemorize.core import storage
from unmemorize.core.errors import UserError
from unmemorize.core.files import kind_of
from unmemorize.core.run import on_disk, this_process
from unmemorize.core.specs import DataSpec
from unmemorize.core.storage import files_in
from unmemorize.data.captions import pieces
from unmemorize.data.source import read_prompts, read_references
from unmemorize.stages.data import audit_data

CAPTIONS = [f"a kite number {i}" for i in range(12)]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A folder of the kinds of source there are, and the same in a bucket of a server: Moto's, in its own process."""
    pytest.importorskip("moto")
    pytest.importorskip("flask")
    folder = tmp_path_factory.mktemp("disk")
    pictures = [png(draw(i)) for i in range(12)]
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS), encoding="utf-8")
    (folder / "prompts.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")
    (folder / "prompts.csv").write_text("\n".join(["caption;n", *(f"{text};1" for text in CAPTIONS)]), encoding="utf-8")
    for name, first in (("a", 0), ("b", 6)):
        members = [(f"{i}.{end}", part) for i in range(first, first + 6)
                   for end, part in (("png", pictures[i]), ("txt", CAPTIONS[i].encode()))]  # fmt: skip
        (folder / "tars").mkdir(exist_ok=True)
        tar_of(folder / "tars" / f"{name}.tar", members)
        (folder / "zipped").mkdir(exist_ok=True)
        tar_of(folder / "zipped" / f"{name}.tgz", members)
    (folder / "tables").mkdir()
    table = pa.table({"caption": CAPTIONS, "image": pictures})
    pq.write_table(table, folder / "tables" / "set.parquet", row_group_size=4)
    (folder / "arrow").mkdir()
    with pa.ipc.new_stream(str(folder / "arrow" / "set.arrow"), table.schema) as writer:
        writer.write_table(table)
    folder_of(folder / "loose", [("one", draw(1), "a kite")])
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", "0"], stderr=said, stdout=subprocess.DEVNULL
        )
    while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    address = found.group()
    patch = pytest.MonkeyPatch()
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (keys | {"AWS_ENDPOINT_URL": address}).items():
        patch.setenv(name, value)
    storage._file_system.cache_clear()
    upload(address, folder)
    yield folder
    patch.undo()
    storage._file_system.cache_clear()
    process.kill()
    process.wait()


def upload(address, folder):
    """By plain requests in a process of its own: the tests may open no socket."""
    code = (
        "import sys; from pathlib import Path; from urllib.request import Request, urlopen\n"
        "kind = {'Content-Type': 'application/octet-stream'}\n"
        "put = lambda key, content: urlopen(Request(f'{sys.argv[1]}/bucket{key}', content, kind, method='PUT'))\n"
        "put('', b'')\n"
        "root = Path(sys.argv[2])\n"
        "for path in root.rglob('*'):\n"
        "    path.is_file() and put(f'/{path.relative_to(root)}', path.read_bytes())\n"
    )
    subprocess.run([sys.executable, "-c", code, address, folder], check=True)


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv", "prompts.json", "tables/set.parquet", "tars/a.tar"])
def test_prompts_are_those_on_a_disk(name, bucket):
    remote = read_prompts(Path(f"s3://bucket/{name}"))
    assert [p.text for p in remote] == [p.text for p in read_prompts(bucket / name)]


@pytest.mark.parametrize("name", ["tables", "tables/set.parquet", "tars", "zipped", "tars/a.tar", "arrow"])
def test_sources_are_those_on_a_disk(name, bucket):
    """Every row and its picture, in the same pieces; pictures to compare with are the same."""
    here, there = pieces(bucket / name), pieces(Path(f"s3://bucket/{name}"))
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        rows = [(item.id, item.caption, item.problem, item.load()) for item in one.items()]
        assert rows == [(item.id, item.caption, item.problem, item.load()) for item in other.items()]
        assert rows
    local, remote = (read_references(place, (24, 24)) for place in (bucket / name, Path(f"s3://bucket/{name}")))
    assert local.names == remote.names
    assert (local.pixels == remote.pixels).all()


def test_an_audit_of_storage_goes_on_and_is_refused_once_that_has_changed(bucket, tmp_path):
    """The record names the source as it was typed."""
    summary = audit_data(DataSpec(source="s3://bucket/tars"), tmp_path / "run")
    assert summary["rows"] == 12
    assert '"s3://bucket/tars"' in (tmp_path / "run" / "run.json").read_text()
    assert audit_data(DataSpec(source="s3://bucket/tars"), tmp_path / "run") == summary
    with pytest.raises(UserError, match="content of source"):
        audit_data(DataSpec(source="s3://bucket/zipped"), tmp_path / "run")


def test_what_is_not_there_is_one_line(bucket, call, tmp_path):
    for name, says in (
        ("s3://bucket/none.tar", "s3://bucket/none.tar: no such file or folder"),
        ("s3://bucket/loose", "s3://bucket/loose: pictures one by one are read on a disk"),
        ("s3://none/set.tar", "s3://none/set.tar: no such file or folder"),
    ):
        code, out, err = call("data", name, "--run", tmp_path / "run")
        assert (code, out) == (2, "")
        (line,) = complaints(err)
        assert says in line
    assert not (tmp_path / "run").exists()


def stored(place):
    """The bytes of all files there but for times, and the page that shows them."""
    names = {str(path.relative_to(place)): path for path in files_in(place)}
    return {k: storage.opened(v).read() for k, v in names.items() if k not in ("timing.json", "report.html")}


def test_a_run_on_storage_has_the_bytes_of_one_on_a_disk(bucket, call, tmp_path, monkeypatch):
    """Two parts of it, as on two machines, of which one is started again; then it is read, and goes on as finished."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    name, run = "s3://bucket/runs/a", Path("s3://bucket/runs/a")
    assert call("data", bucket / "tables", "--run", tmp_path / "run")[0] == 0
    for part, shards in (("1/2", 2), ("1/2", 2), ("0/2", 3)):
        code, out, err = call("data", bucket / "tables", "--run", name, "--part", part)
        assert code == 0, err
        assert len(files_in(run / "shards" / "data")) == shards
        assert str(tmp_path) not in out + err
        if shards == 2:
            assert "of other parts 1 of 3 shards are missing" in err + out
    assert stored(run) == stored(tmp_path / "run")
    assert f"report: {name}/report.html" in out
    code, out, err = call("data", bucket / "tables", "--run", name, "--json")
    assert (code, json.loads(out)["run"]) == (0, name)
    picture = bucket / "picture.png"
    picture.write_bytes(png(draw(1)))
    assert call("nearest", name, picture)[0] == 0
    code, _, err = call("data", bucket / "arrow", "--run", name)
    (line,) = complaints(err)
    assert (code, line.startswith(f"error: {name}: holds a run with other settings")) == (2, True)


def test_workers_put_their_shards_there_themselves(bucket, tmp_path, monkeypatch):
    """Each file before it takes its name here, and from the path alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = on_disk(Path("s3://bucket/runs/b"))
    code = "import sys; from pathlib import Path; from unmemorize.core.run import write_json; "
    code += "write_json(Path(sys.argv[1]), {'a': 1})"
    subprocess.run([sys.executable, "-c", code, folder / "x" / "a.json"], check=True)
    (file,) = files_in(Path("s3://bucket/runs/b"))
    assert json.loads(storage.opened(file).read()) == {"a": 1}
    assert json.loads((on_disk(Path("s3://bucket/runs/b")) / "x" / "a.json").read_text()) == {"a": 1}


def test_what_a_killed_process_held_of_a_run_is_deleted(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host = this_process()[0]
    left, others = (tmp_path / f".storage.{of}.{process.pid}.00000000.tmp" for of in (host, "elsewhere"))
    left.mkdir()
    others.mkdir()
    on_disk(Path("s3://bucket/runs/c"))
    assert not left.exists()
    assert others.exists()


def test_a_key_that_leads_elsewhere_is_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(storage, "files_in", lambda folder: [folder / "a", folder / "../../../../../stolen"])
    monkeypatch.setattr(storage, "opened", lambda path: io.BytesIO(b"x"))
    folder = on_disk(Path("s3://b/run"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]
    assert (folder / "a").read_bytes() == b"x"


@pytest.mark.parametrize("scheme", ["s3", "gs", "hf"])
def test_single_files_are_not_written_there(scheme, call, tmp_path, monkeypatch):
    """In one line, before anything is asked of the storage; nor is a run on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a kite\n")
    name = f"{scheme}://bucket/keep.parquet"
    code, out, err = call("data", "captions.txt", "--run", tmp_path / "run", "--out", name)
    assert (code, out) == (2, "")
    assert complaints(err) == [f"error: {name}: storage is only read: name a place on a disk with --out"]
    code, _, err = call("data", "captions.txt", "--run", "hf://datasets/a/b")
    says = "error: hf://datasets/a/b: the hub is only read: name a place on a disk, s3:// or gs://"
    assert (code, complaints(err)) == (2, [says])
    assert [path.name for path in tmp_path.iterdir()] == ["captions.txt"]


def test_storage_that_does_not_answer_is_one_line(monkeypatch):
    """What it said is the reason."""

    class Silent:
        def get_file_info(self, key):
            raise OSError("When getting information: no route\nand a trace")

    monkeypatch.setattr(storage, "_file_system", lambda scheme, bucket: Silent())
    with pytest.raises(UserError, match=r"^gs://b/k\.tar: cannot be read: When getting information: no route: check"):
        kind_of(Path("gs://b/k.tar"))


def test_a_fault_on_the_way_ends_the_work(monkeypatch, tmp_path):
    """It is not written down as damage of the source, as it would be on a disk."""
    content = tar_of(tmp_path / "a.tar", [(f"{i}.txt", b"x" * 5000) for i in range(900)]).read_bytes()

    class Failing(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 2_000_000:
                raise RuntimeError("connection reset\nand more")
            return super().read(size)

    class Bucket:
        def get_file_info(self, key):
            return SimpleNamespace(type=FileType.File, size=len(content), mtime_ns=None)

        def open_input_file(self, key):
            return Failing(content)

    monkeypatch.setattr(storage, "_file_system", lambda scheme, bucket: Bucket())
    with pytest.raises(UserError, match=r"^hf://b/a\.tar: cannot be read: connection reset: check the name"):
        audit_data(DataSpec(source="hf://b/a.tar"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_a_name_on_a_disk_is_none_of_storage():
    for name in ("s3", "s3:", "/s3:/b", "a/hf:/b", "ftp:/a/b"):
        assert not storage.is_remote(Path(name))
    assert storage.remote_name(Path("hf://datasets/a/b/c.parquet")) == "hf://datasets/a/b/c.parquet"
