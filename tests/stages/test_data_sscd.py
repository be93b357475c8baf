"""The data audit with an SSCD network: what it finds more, whose vectors go together, what is refused."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data_pictures import Everywhere, Upper, draw, folder_of, network_file, png
from hostile import complaints
from unmemorize.core.crew import Part
from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.specs import DataSpec
from unmemorize.data.candidates import Search
from unmemorize.data.copies import CopySearch
from unmemorize.data.recall import ALTERATIONS
from unmemorize.stages.data import Intake, audit_data, nearest_rows

RULE = "phash-7-cosine-16px or sscd-288-cosine-0.75"


class Broken(torch.nn.Module):
    """A network whose features are not finite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * float("nan")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return str(network_file(tmp_path_factory.mktemp("sscd") / "upper.pt", Upper()))


@pytest.fixture
def other(tmp_path):
    """The same network in another file, by its bytes."""
    (tmp_path / "weights").mkdir()
    return str(network_file(tmp_path / "weights" / "another.pt", Upper()))


@pytest.fixture
def source(tmp_path):
    """Eight pictures, captioned copies of two, a greyed copy of one, a very long one, one that cannot be read."""
    rows = [(f"p{i}", draw(i), f"picture number {i}") for i in range(8)]
    rows += [(f"said{i}", ALTERATIONS["captioned"](draw(i)), f"with a bar {i}") for i in (2, 5)]
    rows += [("grey", draw(7).convert("L"), "g"), ("long", Image.new("RGB", (1, 40), "red"), "l"), ("bad", b"no", "x")]
    return folder_of(tmp_path / "source", rows)


@pytest.fixture
def altered(tmp_path):
    """Of the eight a captioned one and one as it is, and another picture."""
    rows = [("said", ALTERATIONS["captioned"](draw(3)), "a"), ("equal", draw(1), "b"), ("new", draw(30), "c")]
    return folder_of(tmp_path / "altered", rows)


def run(source, folder, **options):
    return audit_data(DataSpec(source=str(source), **options), folder)


def dropped(folder):
    return {row["id"] for row in pq.read_table(folder / "actions.parquet").to_pylist() if row["action"] == "drop"}


def test_a_captioned_copy_is_found_with_the_network_alone(source, network, tmp_path):
    """Beside the greyed one, that the network does not know; recall and rule say so; a group has its pairs."""
    without = run(source, tmp_path / "without")
    summary = run(source, tmp_path / "run", sscd=network)
    assert dropped(tmp_path / "without") == {"p7.png"}
    assert dropped(tmp_path / "run") == {"p7.png", "said2.png", "said5.png"}
    near = summary["near_duplicates"]
    assert near["rule"] == RULE
    assert near["compared"] == "all pairs within 7 bits; all pairs of SSCD vectors"
    assert without["near_duplicates"]["rule"] == "phash-7-cosine-16px"
    assert without["near_duplicates"]["recall"]["captioned"] < 0.2
    assert near["recall"]["captioned"] > 0.9
    assert near["recall"]["greyed"] == without["near_duplicates"]["recall"]["greyed"]
    groups = pq.read_table(tmp_path / "run" / "groups.parquet").to_pylist()
    assert len(groups) == 3
    assert all(group["tightest"]["first"] != group["tightest"]["second"] for group in groups)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert RULE in page
    assert "SHA-256" in page


def test_rows_have_vectors_and_none_without_a_network(source, network, tmp_path):
    """A picture that is very long has none; the run knows whose they are."""
    run(source, tmp_path / "without")
    run(source, tmp_path / "run", sscd=network)
    stored = {}
    for name in ("run", "without"):
        (path,) = (tmp_path / name / "shards" / "data").glob("*.parquet")
        stored[name] = {row["id"]: row["sscd"] for row in pq.read_table(path).to_pylist()}
    assert {len(vector) for vector in stored["run"].values() if vector is not None} == {2 * 48}
    assert [id for id, vector in stored["run"].items() if vector is None] == ["long.png"]
    assert set(stored["without"].values()) == {None}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["sscd"]["source"] == network
    assert "sscd" not in json.loads((tmp_path / "without" / "run.json").read_text())["data"]


def test_two_processes_make_the_same_bytes(source, network, tmp_path, monkeypatch):
    """In cells, too; and an audit that was stopped goes on to them."""
    monkeypatch.setattr("unmemorize.data.folders.BATCH", 4)
    monkeypatch.setattr("unmemorize.data.copies.MANY", 3)
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 3)
    spec = DataSpec(source=str(source), sscd=network)
    summary = audit_data(spec, tmp_path / "whole")
    assert "of their 8 nearest of 3 cells" in summary["near_duplicates"]["compared"]
    assert dropped(tmp_path / "whole") == {"p7.png", "said2.png", "said5.png"}
    shutil.copytree(tmp_path / "whole", tmp_path / "shared")
    for path in (tmp_path / "shared" / "shards").rglob("*.parquet"):
        path.unlink()
    for index in (1, 0):
        Intake(spec, tmp_path / "shared", Part(index, 2)).share()
    Search(tmp_path / "shared").share()
    CopySearch(tmp_path / "shared", criterion=Criterion("sscd", 0.75, "sscd-288", higher_is_closer=True)).share()
    shutil.copytree(tmp_path / "shared", tmp_path / "stopped")
    for stage in ("data", "sscd-centres", "sscd-cells", "sscd-pairs"):
        for path in sorted((tmp_path / "stopped" / "shards" / stage).glob("*.parquet"))[::3]:
            path.unlink()
    (tmp_path / "stopped" / "data.json").unlink()
    audit_data(spec, tmp_path / "stopped")
    files = [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    for path in files:
        for folder in ("shared", "stopped"):
            assert (tmp_path / folder / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), (
                folder,
                path,
            )
    assert len([path for path in files if path.parent.name.startswith("sscd-")]) == 1 + 4 + 64


def test_an_audit_grows_and_is_compared(source, altered, network, tmp_path):
    """Of what is added the captioned copy is dropped; of what is compared it is named, with its cosine."""
    run(source, tmp_path / "index", sscd=network)
    run(altered, tmp_path / "grown", sscd=network, add=str(tmp_path / "index"))
    assert {"said.png", "equal.png"} <= dropped(tmp_path / "grown")
    summary = run(altered, tmp_path / "compared", sscd=network, against=str(tmp_path / "index"))
    assert summary["against"]["rule"] == RULE
    equal, said = pq.read_table(tmp_path / "compared" / "against.parquet").to_pylist()
    assert (equal["id"], equal["other"], equal["equal"], equal["cosine"]) == ("equal.png", "p1.png", True, 1)
    assert (said["id"], said["other"], said["equal"], said["cosine"]) == ("said.png", "p3.png", False, None)
    assert 0.75 <= said["sscd"] <= 1


@pytest.mark.parametrize("option", ["add", "against"])
def test_vectors_of_another_network_are_refused(option, source, altered, network, other, tmp_path):
    """Or of none, and a run without it takes none with."""
    run(source, tmp_path / "with", sscd=network)
    run(source, tmp_path / "without")
    for index, weights, says in (
        ("with", other, f"audited with another SSCD network: name {network} with --sscd"),
        ("with", "", f"audited with an SSCD network: name {network} with --sscd"),
        ("without", network, "audited without --sscd: leave it out, or audit that source with it first"),
    ):
        with pytest.raises(UserError) as error:
            run(altered, tmp_path / "new", sscd=weights, **{option: str(tmp_path / index)})
        assert str(error.value) == f"--{option} {tmp_path / index}: {says}"
        assert not (tmp_path / "new").exists()


def test_a_run_has_one_network(source, network, other, tmp_path):
    """It is not gone on with by another, nor without; where the file lies does not matter."""
    run(source, tmp_path / "run", sscd=network)
    for weights in (other, ""):
        with pytest.raises(UserError, match="holds a run with other settings, inputs or versions: content of sscd"):
            run(source, tmp_path / "run", sscd=weights)
    moved = shutil.copy(network, tmp_path / "moved.pt")
    run(source, tmp_path / "run", sscd=str(moved))


def test_a_picture_is_answered_by_the_network(source, network, tmp_path, caplog):
    """Before those that are more like it at 16 pixels; where it is not named by hashes alone, which is said."""
    run(source, tmp_path / "run", sscd=network)
    (tmp_path / "asked.png").write_bytes(png(ALTERATIONS["captioned"](draw(6))))
    found = nearest_rows(tmp_path / "run", tmp_path / "asked.png", 20, network)
    first, *others = found["matches"]
    assert (found["rule"], first["id"], first["near"]) == (RULE, "p6.png", True)
    assert 0.75 <= first["sscd"] <= 1
    assert not any(match["near"] for match in others)
    assert [match["sscd"] for match in others if match["id"] == "long.png"] == [None]
    found = nearest_rows(tmp_path / "run", tmp_path / "asked.png", 20)
    assert found["rule"] == "phash-7-cosine-16px"
    assert not any(match["near"] for match in found["matches"])
    (record,) = caplog.records
    assert "audited with an SSCD network: pictures are compared without it" in record.getMessage()


def test_the_network_of_a_question_is_that_of_the_audit(source, network, other, tmp_path):
    """Its file is compared before it is opened, since it may run code; so it is by a worker on another machine."""
    run(source, tmp_path / "without")
    run(source, tmp_path / "with", sscd=network)
    text = tmp_path / "text.pt"
    text.write_text("never opened")
    with pytest.raises(UserError, match="without: audited without --sscd: leave it out"):
        nearest_rows(tmp_path / "without", tmp_path / "source" / "p1.png", 3, network)
    for weights in (other, str(text)):
        with pytest.raises(UserError, match="with: audited with another SSCD network: name"):
            nearest_rows(tmp_path / "with", tmp_path / "source" / "p1.png", 3, weights)
        with pytest.raises(UserError, match="with: audited with another SSCD network: name"):
            Intake(DataSpec(source=str(source), sscd=weights), tmp_path / "with").share()


def test_the_commands(call, source, network, tmp_path, monkeypatch):
    """As they are typed."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("data", "source", "--run", "run", "--sscd", network)
    assert code == 0
    assert f"near-duplicates: {RULE}, of all pairs within 7 bits; all pairs of SSCD vectors" in out
    (tmp_path / "asked.png").write_bytes(png(ALTERATIONS["captioned"](draw(6))))
    code, out, _ = call("nearest", "run", "asked.png", "--sscd", network)
    assert code == 0
    assert "sscd" in out.splitlines()[0]
    assert "near-duplicate" in out.splitlines()[1]


FILES = {
    "missing": ("missing.pt", "no such file: name an SSCD TorchScript (.pt) or ONNX (.onnx) file"),
    "a text": ("text.pt", "not a TorchScript file: name an SSCD"),
    "a folder": ("source", "a folder, not a file"),
    "no network of pictures": ("tall.pt", "gives vectors of 288 and of"),
    "not finite": ("broken.pt", "features that are not finite: name another file"),
    "onnx": ("net.onnx", 'needs an optional dependency: pip install "unmemorize[onnx]"'),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_network_is_one_line(kind, call, tmp_path, monkeypatch):
    """And but for one that shows itself with a picture alone, no run is begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    folder_of(tmp_path / "source", [("wide", Image.new("RGB", (60, 40), "blue"), "w")])
    (tmp_path / "text.pt").write_text("no network")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07")
    network_file(tmp_path / "tall.pt", Everywhere())
    network_file(tmp_path / "broken.pt", Broken())
    name, says = FILES[kind]
    code, out, err = call("data", "source", "--run", "run", "--sscd", name)
    assert (code, out) == (2, "")
    (line,) = complaints(err)
    assert says in line
    assert (tmp_path / "run").exists() == (name == "tall.pt")
