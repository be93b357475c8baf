"""A finished data audit as an index: rows are added to it, sets are compared with it, a picture asks it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pictures import draw, folder_of, png
from hostile import complaints
from unmemorize.core.crew import Part
from unmemorize.core.errors import UserError
from unmemorize.core.run import quiet
from unmemorize.core.specs import DataSpec
from unmemorize.data.candidates import Search
from unmemorize.data.intake import row_batches
from unmemorize.stages.data import Intake, audit_data, nearest_rows


def run(source, folder, **options):
    return audit_data(DataSpec(source=str(source), **options), folder)


@pytest.fixture
def old(tmp_path):
    """Six pictures, one of them twice, and one that cannot be read."""
    rows = [(f"old{i}", draw(i), f"picture number {i}") for i in range(6)]
    return folder_of(tmp_path / "old", [*rows, ("twice", draw(0), "once more"), ("bad", b"no picture", "x")])


@pytest.fixture
def new(tmp_path):
    """Of the six one as it is, one with noise, and two others; one of these is twice."""
    rows = [
        ("equal", draw(1), "a"),
        ("noisy", draw(2, noise=6), "b"),
        ("other", draw(20), "c"),
        ("same", draw(20), "d"),
    ]
    return folder_of(tmp_path / "new", rows)


def rows_of(folder, *columns):
    tables = [pq.read_table(path, columns=list(columns)) for path in sorted(folder.glob("shards/data/*.parquet"))]
    return [tuple(row[name] for name in columns) for table in tables for row in table.to_pylist()]


def test_what_is_added_is_audited_with_what_was_there(old, new, tmp_path, monkeypatch):
    """The same findings as of both read at once; nothing that was read is read again."""
    run(old, tmp_path / "first")
    both = tmp_path / "both"
    shutil.copytree(old, both / "a")
    shutil.copytree(new, both / "b")
    whole = run(both, tmp_path / "whole")
    decoded = []
    monkeypatch.setattr("unmemorize.data.intake.file_looks", lambda *given: decoded.append(1) or file_looks(*given))
    from unmemorize.data.hashes import file_looks

    summary = run(new, tmp_path / "second", add=str(tmp_path / "first"))
    assert len(decoded) == 4
    for name in ("rows", "pictures", "duplicate_groups", "drop", "skipped", "skipped_by_reason"):
        assert summary[name] == whole[name], name
    assert (summary["rows"], summary["duplicate_groups"]) == (11, 4)
    dropped = {a["id"]: a["reason"] for a in pq.read_table(tmp_path / "second" / "actions.parquet").to_pylist()}
    assert dropped["noisy.png"] == "same picture as old2.png"
    assert dropped["equal.png"] == "same picture as old1.png"
    shown = sorted((tmp_path / "second" / "pictures").glob("*.png"))
    assert len(shown) == 8  # of both sources


def test_an_audit_is_added_to_again_and_again(old, new, tmp_path):
    """Each run holds all rows by itself: those before it may be deleted, which loses their pictures alone."""
    third = folder_of(tmp_path / "third", [("last", draw(20), "e"), ("first", draw(5), "f")])
    run(old, tmp_path / "a")
    run(new, tmp_path / "b", add=str(tmp_path / "a"))
    summary = run(third, tmp_path / "c", add=str(tmp_path / "b"))
    assert (summary["rows"], summary["skipped"]) == (13, 1)
    ids = [id for id, _ in rows_of(tmp_path / "c", "id", "row")]
    assert ids == [*sorted(ids[:7]), "equal.png", "noisy.png", "other.png", "same.png", "first.png", "last.png"]
    numbers = [row for _, row in rows_of(tmp_path / "c", "id", "row")]
    assert numbers == sorted(set(numbers))
    assert len(list((tmp_path / "c" / "pictures").glob("*.png"))) == 11
    shutil.rmtree(tmp_path / "a")
    fourth = run(third, tmp_path / "d", add=str(tmp_path / "b"))
    assert fourth["drop"] == summary["drop"]
    assert len(list((tmp_path / "d" / "pictures").glob("*.png"))) < 11


def test_pictures_of_a_source_that_changed_are_not_shown(old, new, tmp_path, caplog):
    """What lies there now may be another picture."""
    run(old, tmp_path / "a")
    folder_of(old, [("aaa", draw(40), "before all others")])
    summary = run(new, tmp_path / "b", add=str(tmp_path / "a"))
    assert summary["rows"] == 11
    assert [r.getMessage() for r in caplog.records] == [
        f"{old}: not what {tmp_path / 'a'} has read: its pictures are not shown"
    ]
    assert len(list((tmp_path / "b" / "pictures").glob("*.png"))) == 4


def test_a_run_that_grows_is_read_in_parts(old, new, tmp_path):
    """By several processes, to the same bytes."""
    run(old, tmp_path / "a")
    spec = DataSpec(source=str(new), add=str(tmp_path / "a"))
    audit_data(spec, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "shared")
    for path in (tmp_path / "shared" / "shards").rglob("*.parquet"):
        path.unlink()
    for index in (1, 0):
        Intake(spec, tmp_path / "shared", Part(index, 2)).share()
    Search(tmp_path / "shared").share()
    for path in (tmp_path / "whole" / "shards").rglob("*.parquet"):
        assert (tmp_path / "shared" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_two_sets_are_compared(old, new, tmp_path):
    """Each row with the one most like it there; the other set is not changed, and adds no row."""
    run(old, tmp_path / "old-run")
    summary = run(new, tmp_path / "run", against=str(tmp_path / "old-run"))
    assert summary["against"] == {
        "run": str(tmp_path / "old-run"),
        "rule": "phash-7-cosine-16px",
        "compared": "all pairs within 7 bits",
        "rows": 2,
    }
    assert summary["rows"] == 4
    equal, noisy = pq.read_table(tmp_path / "run" / "against.parquet").to_pylist()
    assert (equal["id"], equal["other"], equal["equal"], equal["cosine"]) == ("equal.png", "old1.png", True, 1)
    assert (noisy["id"], noisy["other"], noisy["equal"]) == ("noisy.png", "old2.png", False)
    assert 0.95 <= noisy["cosine"] < 1
    assert "2 rows have a picture that is in" in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_every_row_of_a_picture_is_named(old, new, tmp_path):
    """The other way round: of the picture that is twice, both."""
    run(new, tmp_path / "new-run")
    folder_of(old, [("same", draw(20), "g"), ("again", draw(20), "h")])
    run(old, tmp_path / "run", against=str(tmp_path / "new-run"))
    found = pq.read_table(tmp_path / "run" / "against.parquet").to_pylist()
    assert {(row["id"], row["other"]) for row in found} == {
        ("old1.png", "equal.png"),
        ("old2.png", "noisy.png"),
        ("same.png", "other.png"),
        ("again.png", "other.png"),
    }


def test_many_are_compared_by_cells(old, new, tmp_path, monkeypatch):
    """How pairs are found depends on how many hashes both sets have together; what is found is the same."""
    run(old, tmp_path / "old-run")
    few = run(new, tmp_path / "few", against=str(tmp_path / "old-run"))
    monkeypatch.setattr("unmemorize.data.candidates.MANY", 5)
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 2)
    summary = run(new, tmp_path / "run", against=str(tmp_path / "old-run"))
    cells = "share one of their 2 nearest of 2 cells of embeddings"
    assert summary["against"]["compared"] == f"all pairs within 3 bits, and those within 7 that {cells}"
    assert summary["against"]["rows"] == few["against"]["rows"] == 2
    assert pq.read_table(tmp_path / "run" / "against.parquet") == pq.read_table(tmp_path / "few" / "against.parquet")
    assert summary["near_duplicates"] == few["near_duplicates"]


def test_captions_alone_have_nothing_in_common(old, tmp_path):
    """Rows without pictures, on either side."""
    (tmp_path / "captions.txt").write_text("one\ntwo\n")
    run(tmp_path / "captions.txt", tmp_path / "captions-run")
    run(old, tmp_path / "old-run")
    assert run(old, tmp_path / "a", against=str(tmp_path / "captions-run"))["against"]["rows"] == 0
    assert run(tmp_path / "captions.txt", tmp_path / "b", against=str(tmp_path / "old-run"))["against"]["rows"] == 0


def test_a_picture_is_answered_with_those_most_like_it(old, tmp_path):
    """Equal pixels first, then by cosine; a near-duplicate is named as that."""
    run(old, tmp_path / "run")
    (tmp_path / "asked.png").write_bytes(png(draw(0)))
    found = nearest_rows(tmp_path / "run", tmp_path / "asked.png", 4)
    assert found["pictures"] == 7
    assert [match["id"] for match in found["matches"]][:2] == ["old0.png", "twice.png"]
    assert [match["equal"] for match in found["matches"]] == [True, True, False, False]
    cosines = [match["cosine"] for match in found["matches"]]
    assert cosines == sorted(cosines, reverse=True)
    (tmp_path / "asked.png").write_bytes(png(draw(3, noise=6)))
    first, *others = nearest_rows(tmp_path / "run", tmp_path / "asked.png", 100)["matches"]
    assert (first["id"], first["equal"], first["near"]) == ("old3.png", False, True)
    assert len(others) == 6
    assert not any(match["near"] for match in others)


def test_rows_are_read_a_few_at_a_time(tmp_path):
    """Those that were read before are not held."""
    embeddings = [row.tobytes() for row in np.random.default_rng(0).integers(0, 256, (20_000, 1500), np.uint8)]
    rows = pa.table({"row": np.arange(20_000), "embedding": embeddings})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=1000)
    before, held = pa.total_allocated_bytes(), []
    for batch in row_batches(tmp_path / "rows.parquet", ["embedding"], 1000):
        held.append(pa.total_allocated_bytes() - before)
        del batch
    assert len(held) == 20
    assert max(held) < rows.nbytes / 4


def test_the_commands(call, old, new, tmp_path, monkeypatch):
    """As they are typed; the table names equal pictures, JSON has every number."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked.png").write_bytes(png(draw(0)))
    assert call("data", "old", "--run", "index")[0] == 0
    code, out, _ = call("data", "new", "--run", "compared", "--against", "index")
    assert code == 0
    assert "pictures of 2 rows are in index, too (phash-7-cosine-16px): against.parquet" in out
    assert call("data", "new", "--run", "grown", "--add", "index")[0] == 0
    code, out, _ = call("nearest", "grown", "asked.png", "--top", "2")
    assert code == 0
    assert out.count("equal pixels") == 2
    assert "11 pictures of grown" in out
    code, out, _ = call("nearest", "grown", "asked.png", "--json")
    assert len(json.loads(out)["matches"]) == 10


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("data", "new", "--run", "x", "--add", "none"), "--add none: no finished data audit"),
        (("data", "new", "--run", "x", "--against", "new"), "--against new: no finished data audit"),
        (("data", "new", "--run", "index", "--add", "index"), "index: lies in index, which is read"),
        (("data", "new", "--run", "x", "--add", "damaged"), "000000000.parquet: missing or damaged"),
        (("nearest", "none", "asked.png"), "none: no finished data audit"),
        (("nearest", "index", "none.png"), "none.png: no such file: name a picture"),
        (("nearest", "index", "new"), "new: a folder, not a file: name a picture"),
    ],
)
def test_mistakes_are_one_line(call, old, new, tmp_path, monkeypatch, typed, says):
    monkeypatch.chdir(tmp_path)
    call("data", "old", "--run", "index")
    shutil.copytree("index", "damaged")
    (tmp_path / "damaged" / "shards" / "data" / "000000000.parquet").write_bytes(b"PAR1")
    code, out, err = call(*typed)
    assert (code, out) == (2, "")
    (line,) = complaints(err)
    assert says in line
    assert not (tmp_path / "x").exists()


def test_another_version_hashes_otherwise(old, new, tmp_path):
    run(old, tmp_path / "index")
    record = json.loads((tmp_path / "index" / "run.json").read_text())
    record["versions"]["imagehash"] = "1.0"
    (tmp_path / "index" / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"begun with other versions: imagehash: 1\.0 there"):
        audit_data(DataSpec(source=str(new), against=str(tmp_path / "index")), tmp_path / "run", quiet)
