"""Work that can be killed and run again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmemorize.core import shards
from unmemorize.core.crew import Part, part_of
from unmemorize.core.errors import UserError
from unmemorize.core.run import RunRecord, load_record
from unmemorize.core.shards import merge_shards, require_whole, run_shards, write_rows


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
    assert [p.name for p in tmp_path.iterdir()] == ["000000000.parquet"]


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
        run(Worker(breaks_at=7), tmp_path / "a" / "pieces")
    rest = Worker()
    run(rest, tmp_path / "a" / "pieces")
    assert rest.seen == [6, 7, 8, 9]
    run(Worker(), tmp_path / "b" / "pieces")
    for name in "ab":
        merge_shards(tmp_path / name / "pieces", tmp_path / f"{name}.parquet")
    digests = [
        [
            hashlib.sha256(p.read_bytes()).hexdigest()
            for p in (*sorted((tmp_path / n / "pieces").iterdir()), tmp_path / f"{n}.parquet")
        ]
        for n in "ab"
    ]
    assert digests[0] == digests[1]


def test_merge_keeps_the_order_of_the_items(tmp_path):
    """With more than ten pieces the merged rows are still in the items' order."""
    run(Worker(), tmp_path / "pieces", range(40))
    merge_shards(tmp_path / "pieces", tmp_path / "all.parquet")
    assert pq.read_table(tmp_path / "all.parquet")["n"].to_pylist() == list(range(40))


def test_a_join_of_some_shards_at_a_time_is_the_join_of_all(tmp_path, monkeypatch):
    """Row groups of a few shards: the same rows and the same seal; a column that begins with nothing keeps its type."""
    rows = [{"n": n, "x": None if n < 6 else "a"} for n in range(20)]
    list(run_shards(rows, list, folder=tmp_path / "scores" / "pieces", size=2))
    merge_shards(tmp_path / "scores" / "pieces", tmp_path / "scores" / "all.parquet")
    for name in ("ROW_GROUP", "AT_ONCE"):
        monkeypatch.setattr(shards, name, 3)
    merge_shards(tmp_path / "scores" / "pieces", tmp_path / "scores" / "some.parquet")
    write_rows(tmp_path / "scores" / "rows.parquet", iter(rows), pa.schema([("n", pa.int64()), ("x", pa.string())]))
    seals = set()
    for name in ("all", "some", "rows"):
        table = pq.read_table(tmp_path / "scores" / f"{name}.parquet")
        assert table.to_pylist() == rows
        assert table.schema.field("x").type == pa.string()
        seals.add(pq.read_metadata(tmp_path / "scores" / f"{name}.parquet").metadata[b"unmemorize sha256"])
    assert len(seals) == 1
    assert pq.read_metadata(tmp_path / "scores" / "some.parquet").num_row_groups == 5
    require_whole(tmp_path / "scores")


def test_a_column_that_is_empty_in_one_piece_is_merged(tmp_path):
    """A piece whose values are all missing does not spoil the column's type."""
    rows = [{"x": None}, {"x": "a"}]
    list(run_shards(rows, list, folder=tmp_path / "pieces", size=1))
    merge_shards(tmp_path / "pieces", tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table["x"].to_pylist() == [None, "a"]
    assert table.schema.field("x").type == pa.string()


def test_nothing_to_do_is_no_work(tmp_path):
    """No items are no pieces and no call of the worker."""
    work = Worker()
    assert run(work, tmp_path, []) == []
    assert work.seen == []


def record_of(run, **changes):
    values = {"spec": {"seeds": 1}, "versions": {}, "model": {}, "data": {}, "status": "running"} | changes
    RunRecord(**values).save(run)


def test_a_shard_says_what_it_is(tmp_path):
    """The footer holds stage, number, range and digest of the record; the merged table has none."""
    record_of(tmp_path)
    folder = tmp_path / "shards" / "squares"
    run(Worker(), folder)
    footer = json.loads(pq.read_metadata(folder / "000000002.parquet").metadata[b"unmemorize"])
    assert {name: footer[name] for name in ("stage", "number", "start", "stop", "total", "rows")} == {
        "stage": "squares", "number": 2, "start": 6, "stop": 9, "total": 10, "rows": 3,
    }  # fmt: skip
    assert footer["record"] == load_record(tmp_path).digest
    assert "threads" in footer["platform"]
    merge_shards(folder, tmp_path / "all.parquet")
    assert b"unmemorize" not in pq.read_metadata(tmp_path / "all.parquet").metadata


def empty(folder):
    (folder / "000000001.parquet").write_bytes(b"")


def truncated(folder):
    path = folder / "000000001.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def a_row_missing(folder):
    path = folder / "000000001.parquet"
    pq.write_table(pq.read_table(path)[:-1], path)


def another_shard(folder):
    shutil.copy(folder / "000000000.parquet", folder / "000000001.parquet")


def another_run(folder):
    record_of(folder / "other", spec={"seeds": 2})
    run(Worker(), folder / "other" / "shards" / "pieces")
    shutil.move(folder / "other" / "shards" / "pieces" / "000000001.parquet", folder / "000000001.parquet")
    shutil.rmtree(folder / "other")


def without_footer(folder):
    path = folder / "000000001.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def one_number_changed(folder):
    path = folder / "000000001.parquet"
    table = pq.read_table(path)
    values = [0, *table[0].to_pylist()[1:]]
    pq.write_table(table.set_column(0, table.column_names[0], pa.array(values)), path)


def retyped(folder):
    path = folder / "000000001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, table.column_names[0], pa.array([b"x"] * len(table))), path)


DAMAGES = [empty, truncated, a_row_missing, another_shard, another_run, without_footer, one_number_changed, retyped]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_shard_is_refused_or_made_anew(damage, tmp_path, caplog):
    """A merge refuses it in one line; the command started again makes it anew, and says so: the same bytes."""
    record_of(tmp_path)
    folder = tmp_path / "shards" / "pieces"
    run(Worker(), folder)
    before = [path.read_bytes() for path in sorted(folder.iterdir())]
    damage(folder)
    with pytest.raises(UserError, match="start the") as refused:
        merge_shards(folder, tmp_path / "all.parquet")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "all.parquet").exists()
    again = Worker()
    run(again, folder)
    assert again.seen == [3, 4, 5]
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == before
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == ["damaged, or of another run"]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def _retype(path):
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "b", pa.array([str(value) for value in table["b"].to_pylist()])), path)


def _one_number(path):
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "b", pa.array([1.5, 9.0])), path)


def _foreign(path):
    pq.write_table(pa.table({"a": ["x", "y"], "b": [1.5, 2.5]}), path)


@pytest.mark.parametrize("damage", [_truncate, _retype, _one_number, _foreign])
def test_a_table_that_was_changed_is_refused(damage, tmp_path):
    """Also by one number: a run goes on with what it wrote, or not at all."""
    write_rows(tmp_path / "t.parquet", [{"a": "x", "b": 1.5}, {"a": "ÿ", "b": float("nan")}])
    require_whole(tmp_path)
    damage(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: damaged: delete it and start the same command again"):
        require_whole(tmp_path)


def test_a_merge_wants_all_shards(tmp_path):
    """A missing one in the middle or at the end, and none at all, are one line each."""
    for missing, says in (([1], "3 of 10"), ([3], "9 of 10"), (range(4), "0 of all")):
        folder = tmp_path / says
        run(Worker(), folder)
        for number in missing:
            (folder / f"{number:09d}.parquet").unlink()
        with pytest.raises(UserError, match=f"{says} items in a row are there"):
            merge_shards(folder, tmp_path / "all.parquet")


def test_shards_of_several_platforms_are_told(tmp_path, monkeypatch, caplog):
    """Threads and device decide the last digits: a table that is joined from several says so, in one line."""
    monkeypatch.setattr(shards, "_platform", lambda: "x86_64, 1 threads")
    run(Worker(), tmp_path / "pieces")
    merge_shards(tmp_path / "pieces", tmp_path / "all.parquet")
    assert not caplog.records
    (tmp_path / "pieces" / "000000001.parquet").unlink()
    monkeypatch.setattr(shards, "_platform", lambda: "x86_64, 2 threads")
    run(Worker(), tmp_path / "pieces")
    merge_shards(tmp_path / "pieces", tmp_path / "all.parquet")
    (record,) = caplog.records
    assert "made on several platforms: x86_64, 1 threads; x86_64, 2 threads" in record.getMessage()


def test_claims_of_finished_shards_are_taken_away(tmp_path):
    """A process that was killed just after it had written a shard leaves its claim beside it."""
    run(Worker(), tmp_path / "pieces")
    (tmp_path / "pieces" / "000000001.claim").write_text('["elsewhere", 1]')
    worker = Worker()
    run(worker, tmp_path / "pieces")
    assert not worker.seen
    assert not list((tmp_path / "pieces").glob("*.claim"))


def test_shards_are_ordered_by_number(tmp_path):
    """Also where a name outgrows its digits."""
    folder = tmp_path / "pieces"
    list(run_shards(list(range(12)), Worker(), folder=folder, size=1))
    for path in folder.iterdir():
        path.rename(folder / f"{int(path.stem)}.parquet")
    merge_shards(folder, tmp_path / "all.parquet")
    assert pq.read_table(tmp_path / "all.parquet")["n"].to_pylist() == list(range(12))


@given(count=st.integers(0, 200), of=st.integers(1, 40))
def test_parts_cut_the_shards(count, of):
    """Every shard is in one part, in order, and no part has more than one more than another."""
    parts = [list(Part(index, of).shards(count)) for index in range(of)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_part_does_its_shards_alone(tmp_path):
    """The others are neither done nor read; the parts together give the bytes of the whole."""
    run(Worker(), tmp_path / "whole" / "pieces")
    for index in (1, 0):
        work = Worker()
        list(run_shards(list(range(10)), work, folder=tmp_path / "parts" / "pieces", size=3, part=Part(index, 2)))
        assert work.seen == [list(range(6)), list(range(6, 10))][index]
    for path in sorted((tmp_path / "whole" / "pieces").iterdir()):
        assert (tmp_path / "parts" / "pieces" / path.name).read_bytes() == path.read_bytes()


ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "8"}


@pytest.mark.parametrize(
    ("text", "environment", "part"),
    [
        ("2/4", {}, Part(2, 4)),
        ("auto", {"RANK": "1", "WORLD_SIZE": "3"}, Part(1, 3)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_COUNT": "4"}, Part(2, 4)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_STEP": "2"}, Part(1, 2)),
    ],
)
def test_a_part_is_named_or_found(text, environment, part):
    """By hand, by torchrun, or by a SLURM array."""
    assert part_of(text, environment) == part


@pytest.mark.parametrize(
    ("text", "environment", "says"),
    [
        ("4/4", {}, "counted from 0"),
        ("one", {}, "write I/N"),
        ("-1/2", {}, "write I/N"),
        (f"0/{'9' * 5000}", {}, "write I/N"),
        ("auto", {"RANK": "0"}, "WORLD_SIZE is ''"),
        ("auto", {"RANK": "first", "WORLD_SIZE": "2"}, "RANK is 'first'"),
        ("auto", {}, "neither RANK nor SLURM_ARRAY_TASK_ID"),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_COUNT": "2"}, "has gaps: number it without, as in --array=0-7"),
    ],
)
def test_a_part_that_there_is_not_is_one_line(text, environment, says):
    """What is wrong, and what to write."""
    with pytest.raises(UserError, match=says):
        part_of(text, environment)


WORKER = """
import sys, time
from pathlib import Path
from unmemorize.core import shards
from unmemorize.core.shards import run_shards
shards.SILENT = 3.0
folder, mark = Path(sys.argv[1]), sys.argv[2]
def work(piece):
    with open(folder.parent / "done.txt", "a") as log:
        log.write(f"{mark} {piece[0]}\\n")
    time.sleep(0.05)
    return [{"n": n, "square": n * n} for n in piece]
list(run_shards(list(range(60)), work, folder=folder, size=3))
"""


@pytest.fixture
def start():
    """Starts a process that does the shards of a folder under its mark; none outlives the test."""
    started = []

    def start(folder, mark):
        folder.mkdir(parents=True, exist_ok=True)
        started.append(subprocess.Popen([sys.executable, "-c", WORKER, str(folder), mark]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_two_processes_share_the_work(start, tmp_path):
    """Started at once on one run, each does a part, no shard is done twice, and the bytes are those of one process."""
    folder = tmp_path / "shards" / "pieces"
    processes = [start(folder, mark) for mark in "ab"]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    lines = (folder.parent / "done.txt").read_text().split("\n")[:-1]
    assert sorted(int(line.split()[1]) for line in lines) == list(range(0, 60, 3))
    alone = tmp_path / "alone" / "shards" / "pieces"
    assert start(alone, "c").wait(timeout=60) == 0
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in alone.iterdir()}
    assert len(files) == 20


def test_the_claim_of_a_killed_process_is_taken_over(start, tmp_path):
    """Killed in the middle of a shard, it leaves a claim; the next process does that shard, too."""
    folder = tmp_path / "shards" / "pieces"
    process = start(folder, "a")
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.claim")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert len(list(folder.glob("*.parquet"))) < 20
    assert start(folder, "b").wait(timeout=60) == 0
    assert len(list(folder.glob("*.parquet"))) == 20
    assert not list(folder.glob("*.claim"))


def test_a_claim_is_believed_while_its_process_gives_signs(tmp_path, monkeypatch):
    """Whether a process of another host is there cannot be asked: its shard is left to it until it is silent."""
    monkeypatch.setattr(shards, "POLL", 0)
    monkeypatch.setattr(shards, "SILENT", 0.3)
    folder = tmp_path / "pieces"
    folder.mkdir()
    claim = folder / "000000000.claim"
    claim.write_text('["elsewhere", 1]')
    work = Worker()
    steps = run_shards(list(range(6)), work, folder=folder, size=3)
    assert next(steps) == 3
    assert work.seen == [3, 4, 5]
    claims = shards.Claims()
    for touched in range(5):
        os.utime(claim, (touched, touched))
        with claims.claim(folder / "000000000.parquet") as mine:
            assert not mine
        time.sleep(0.1)
    assert list(steps) == [6]
    assert work.seen == [3, 4, 5, 0, 1, 2]


def test_a_process_at_a_shard_gives_signs(tmp_path, monkeypatch):
    """Its claim is touched while it works."""
    monkeypatch.setattr(shards, "BEAT", 0.01)
    with shards.Claims().claim(tmp_path / "0.parquet") as mine:
        assert mine
        (claim,) = tmp_path.iterdir()
        os.utime(claim, (1, 1))
        deadline = time.monotonic() + 10
        while claim.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert claim.stat().st_mtime > 1
    assert not list(tmp_path.iterdir())


def test_a_stopped_process_keeps_nobody_waiting(start, tmp_path):
    """Its shard is done by the other; when it goes on, it does no harm."""
    folder = tmp_path / "shards" / "pieces"
    first = start(folder, "a")
    while not list(folder.glob("*.claim")):
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    assert start(folder, "b").wait(timeout=90) == 0
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=60) == 0
    assert len(list(folder.glob("*.parquet"))) == 20


def test_shards_that_need_those_before_them_are_not_done_ahead(tmp_path, monkeypatch):
    """Where another process is at the first, the second waits."""
    folder = tmp_path / "pieces"
    folder.mkdir()
    claim = folder / "000000000.claim"
    claim.write_text('["elsewhere", 1]')
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: claim.unlink())
    work = Worker()
    assert list(run_shards(list(range(6)), work, folder=folder, size=3, in_order=True)) == [3, 6]
    assert work.seen == list(range(6))
