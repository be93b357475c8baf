"""Pictures that a network takes for copies: the search against brute force over all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unmemorize.core.criteria import Criterion
from unmemorize.data.copies import CopySearch, joined, near_vectors, nearest_vectors
from unmemorize.data.duplicates import components
from unmemorize.data.hashes import Looks, copy_cosine, unit
from unmemorize.data.intake import ROWS

IS_COPY = Criterion("sscd", 0.75, "sscd-288", "0" * 64, higher_is_closer=True)


def made_up(seed, groups=12, each=5, size=24):
    """Vectors around some directions, at cosines from 0.5 to 1 of each other, in no order; one of them is zero."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, size))
    vectors = np.repeat(centres, each, 0) + rng.normal(size=(groups * each, size)) * rng.uniform(0, 0.9, (60, 1))
    vectors[7] = 0
    return unit(rng.permutation(vectors).astype(np.float32)).astype(np.float16)


def write(run, vectors, size=20):
    """Rows of pictures with vectors, None for a row without one, in files of `size` rows; the row of each."""
    (run / "shards" / "data").mkdir(parents=True)
    lines = []
    for place, vector in enumerate(vectors):
        number, of_file = divmod(place, size)
        line = {"row": (number << 32) + of_file, "id": str(place), "words": []}
        if vector is not None:
            line |= {"pixels": vector.tobytes(), "perceptual": place, "embedding": b"", "sscd": vector.tobytes()}
        lines.append(line)
    for number, start in enumerate(range(0, len(lines), size)):
        table = pa.Table.from_pylist(lines[start : start + size], ROWS)
        pq.write_table(table, run / "shards" / "data" / f"{number:09}.parquet")
    return [line["row"] for line in lines]


def found(search):
    steps = list(search.take())
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    return [row for path in search.pairs for row in pq.read_table(path).to_pylist()]


def grouped(pairs):
    """Each row of some pairs, and the first that it is connected with."""
    members, leaders = components(np.array(sorted(pairs), np.int64).reshape(-1, 2))
    return dict(zip(members.tolist(), leaders.tolist(), strict=True))


def looks(vector):
    return Looks(1, 1, vector.tobytes(), 0, b"", vector.tobytes())


@pytest.mark.parametrize("most", [1, 6, 60])
def test_pairs_by_blocks_equal_brute_force(most, monkeypatch):
    """Blocks that do not divide the number of vectors; each vector with the `most` that follow it."""
    monkeypatch.setattr("unmemorize.data.copies.BLOCK", 7)
    vectors = made_up(0)
    pairs = []
    for one, other in near_vectors(vectors, 0.75, range(0, len(vectors), 7), most):
        pairs += zip(one.tolist(), other.tolist(), strict=True)
    cosines = vectors.astype(np.float32) @ vectors.astype(np.float32).T
    expected = [(i, j) for i, j in combinations(range(60), 2) if cosines[i, j] >= 0.75 and j - i <= most]
    assert sorted(pairs) == expected
    assert len(expected) >= most


def test_nearest_by_blocks_equal_brute_force(monkeypatch):
    """Of equal ones the first."""
    monkeypatch.setattr("unmemorize.data.copies.BLOCK", 7)
    vectors, others = made_up(0), np.concatenate([made_up(0)[::-1], made_up(0), made_up(1)])
    triples = []
    for one, other, cosine in nearest_vectors(vectors, others, 0.75, range(0, 60, 7)):
        triples += zip(one.tolist(), other.tolist(), cosine.tolist(), strict=True)
    cosines = vectors.astype(np.float32) @ others.astype(np.float32).T
    lit = [i for i in range(60) if cosines[i].max() >= 0.75]
    assert [one for one, _, _ in triples] == lit
    for one, other, cosine in triples:
        assert cosines[one, other] == pytest.approx(cosines[one].max(), abs=1e-6)
        assert cosine == pytest.approx(min(cosines[one, other], 1), abs=1e-6)
        assert other < 60
    assert len(lit) == 59
    assert next(nearest_vectors(vectors, others[:0], 0.75, [0]))[0].size == 0


def test_pairs_are_joined_as_they_come(monkeypatch):
    """However few are held: the same components."""
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 300, (n, 2)) for n in (0, 5, 60, 1, 70)]
    whole = joined(batches)
    monkeypatch.setattr("unmemorize.data.copies.HELD", 10)
    few = joined(batches)
    members, leaders = components(np.concatenate(batches))
    assert [side.tolist() for side in whole] == [side.tolist() for side in few]
    assert whole[0].tolist() == members[members != leaders].tolist()
    assert [side.tolist() for side in joined([])] == [[], []]


@pytest.mark.parametrize("cells", [1, 4, 30])
def test_a_search_equals_brute_force(cells, tmp_path, monkeypatch):
    """The groups over all pairs that `finds` says, whether all are compared or those that share one cell."""
    vectors = [*made_up(0), None, made_up(0)[3]]
    rows = write(tmp_path, vectors)
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", cells)
    monkeypatch.setattr(CopySearch, "searched", 1)
    monkeypatch.setattr("unmemorize.data.copies.BLOCK", 4)
    exact, by_cells = (CopySearch(tmp_path, criterion=IS_COPY, many=many) for many in (1000, 10))
    every = grouped([(pair["one"], pair["other"]) for pair in found(exact)])
    for path in exact.pairs:
        path.unlink()
    some = grouped([(pair["one"], pair["other"]) for pair in found(by_cells)])
    distinct = [(row, looks(vector)) for row, vector in zip(rows[:-2], vectors[:-2], strict=True)]
    for search, groups in ((exact, every), (by_cells, some)):
        pairs = combinations(distinct, 2)
        assert groups == grouped([(a, b) for (a, one), (b, other) in pairs if search.finds(one, other)])
    assert 40 < len(every) < 60
    assert (every == some) == (cells == 1)
    assert exact.how == "all pairs of SSCD vectors"
    assert by_cells.how == f"pairs of SSCD vectors that share one of their 1 nearest of {cells} cells"


def test_a_cell_is_compared_with_those_that_follow_alone(tmp_path, monkeypatch):
    """Two copies with many others between them in a cell that is far too large are lost, and nothing else is."""
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 1)
    monkeypatch.setattr("unmemorize.data.copies.MOST", 3)
    vectors = np.eye(24, dtype=np.float16)
    rows = write(
        tmp_path, [vectors[0], vectors[1], unit(vectors[:1] + 0.01)[0], *vectors[2:], unit(vectors[1:2] + 0.01)[0]]
    )
    pairs = found(CopySearch(tmp_path, criterion=IS_COPY, many=10))
    assert pairs == [{"one": rows[0], "other": rows[2]}]


@pytest.mark.parametrize("many", [1000, 10])
def test_two_sets_are_compared(many, tmp_path, monkeypatch):
    """Of each row the nearest one of the other set, over the shards that have compared it."""
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 4)
    monkeypatch.setattr("unmemorize.data.copies.BLOCK", 4)
    here, there = made_up(0), made_up(0)[::-1][:40]
    rows, others = write(tmp_path / "here", here), write(tmp_path / "there", there)
    best = {}
    for pair in found(CopySearch(tmp_path / "here", tmp_path / "there", criterion=IS_COPY, many=many)):
        best[pair["row"]] = max(best.get(pair["row"], (0, 0)), (pair["sscd"], -pair["other"]))
    expected = {}
    for row, vector in zip(rows, here, strict=True):
        cosines = [copy_cosine(vector.tobytes(), other.tobytes()) for other in there]
        if max(cosines) >= 0.75:
            expected[row] = others[int(np.argmax(cosines))]
    assert {row: -other for row, (_, other) in best.items()} == expected
    assert len(expected) > 39


@pytest.mark.parametrize("vectors", [[], [None, None]])
def test_nothing_is_found_among_no_vectors(vectors, tmp_path):
    """Captions alone, or pictures too long for one; and against others."""
    write(tmp_path / "run", vectors)
    write(tmp_path / "other", made_up(0))
    assert found(CopySearch(tmp_path / "run", criterion=IS_COPY)) == []
    assert found(CopySearch(tmp_path / "run", tmp_path / "other", criterion=IS_COPY)) == []
    assert found(CopySearch(tmp_path / "other", tmp_path / "run", criterion=IS_COPY, many=10)) == []


def test_a_search_goes_on(tmp_path, monkeypatch):
    """Shards that are gone or damaged are made again, to the same bytes; the others are not."""
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 4)
    write(tmp_path, made_up(0))
    search = CopySearch(tmp_path, criterion=IS_COPY, many=10)
    pairs = found(search)
    made = sorted((tmp_path / "shards").glob("sscd-*/*.parquet"))
    assert len(made) == 1 + 3 + 64
    before = [path.read_bytes() for path in made]
    kept = made[-1].stat().st_mtime_ns
    made[0].unlink()
    made[2].write_bytes(b"PAR1")
    made[5].unlink()
    assert found(CopySearch(tmp_path, criterion=IS_COPY, many=10)) == pairs
    assert [path.read_bytes() for path in made] == before
    assert made[-1].stat().st_mtime_ns == kept
