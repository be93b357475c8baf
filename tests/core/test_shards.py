"""Work that can be killed and run again."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unmemorize.core.shards import merge_shards, run_shards


class Worker:
    """Squares numbers, remembers what it was asked, and breaks at one of them."""

    def __init__(self, breaks_at=None):
        self.seen = []
        self.breaks_at = breaks_at

    def __call__(self, piece):
        if self.breaks_at in piece:
            raise RuntimeError("killed")
        self.seen.extend(piece)
        return [{"n": n, "square": n * n} for n in piece]


def run(work, folder, items=range(10)):
    return list(run_shards(list(items), work, folder=folder, size=3))


def test_pieces_cover_every_item_once_and_report_progress(tmp_path):
    """Every item is worked on once, in order, and progress counts items up to the last."""
    work = Worker()
    assert run(work, tmp_path) == [3, 6, 9, 10]
    assert work.seen == list(range(10))


def test_pieces_already_written_are_not_done_again(tmp_path):
    """A second run does nothing but report progress."""
    run(Worker(), tmp_path)
    again = Worker()
    assert run(again, tmp_path) == [3, 6, 9, 10]
    assert again.seen == []


def test_a_failing_piece_leaves_no_file(tmp_path):
    """What was finished before the failure stays; of the failing piece there is nothing, temporary or not."""
    with pytest.raises(RuntimeError, match="killed"):
        run(Worker(breaks_at=4), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["00000.parquet"]


def test_a_failing_write_leaves_no_file(tmp_path, monkeypatch):
    """A full disk in the middle of writing a piece leaves no half file under its name."""

    def full(table, path):
        path.write_bytes(b"PAR1")
        raise OSError("no space left")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        run(Worker(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_continues_to_the_same_bytes(tmp_path):
    """Killed once and continued, every piece and the merged file have the bytes of an unbroken run."""
    with pytest.raises(RuntimeError, match="killed"):
        run(Worker(breaks_at=7), tmp_path / "a")
    rest = Worker()
    run(rest, tmp_path / "a")
    assert rest.seen == [6, 7, 8, 9]
    run(Worker(), tmp_path / "b")
    for name in "ab":
        merge_shards(tmp_path / name, tmp_path / f"{name}.parquet")
    digests = [
        [
            hashlib.sha256(p.read_bytes()).hexdigest()
            for p in (*sorted((tmp_path / n).iterdir()), tmp_path / f"{n}.parquet")
        ]
        for n in "ab"
    ]
    assert digests[0] == digests[1]


def test_merge_keeps_the_order_of_the_items(tmp_path):
    """With more than ten pieces the merged rows are still in the items' order."""
    run(Worker(), tmp_path / "pieces", range(40))
    table = merge_shards(tmp_path / "pieces", tmp_path / "all.parquet")
    assert table["n"].to_pylist() == list(range(40))
    assert pq.read_table(tmp_path / "all.parquet") == table


def test_a_column_that_is_empty_in_one_piece_is_merged(tmp_path):
    """A piece whose values are all missing does not spoil the column's type."""
    rows = [{"x": None}, {"x": "a"}]
    list(run_shards(rows, list, folder=tmp_path / "pieces", size=1))
    table = merge_shards(tmp_path / "pieces", tmp_path / "all.parquet")
    assert table["x"].to_pylist() == [None, "a"]
    assert table.schema.field("x").type == pa.string()


def test_nothing_to_do_is_no_work(tmp_path):
    """No items are no pieces and no call of the worker."""
    work = Worker()
    assert run(work, tmp_path, []) == []
    assert work.seen == []
