"""Duplicate pictures: exact and near, against brute force over all pairs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pictures import draw, png
from unmemorize.core.pictures import read_picture
from unmemorize.data.candidates import Search
from unmemorize.data.database import database, open_parquet, rows
from unmemorize.data.duplicates import SAME, are_near_duplicates, caption_groups, group_pictures, picture_groups
from unmemorize.data.hashes import file_looks, looks_of, similarity
from unmemorize.data.intake import ROWS
from unmemorize.data.near_cells import near_in_cells
from unmemorize.data.near_hashes import SEVEN_BITS, THREE_BITS, near_hashes
from unmemorize.data.recall import ALTERATIONS, measure_recall


def searched(contents, run, size=1000):
    """The search among pictures given as bytes, in files of `size` rows, from its beginning to its end."""
    shutil.rmtree(run, ignore_errors=True)
    lines = [
        {"row": i, "id": str(i), "caption": f"c{i}", "text": f"c{i}", "words": [f"c{i}"]}
        | (file_looks(content) if content else {})
        for i, content in enumerate(contents)
    ]
    (run / "shards" / "data").mkdir(parents=True)
    for number, start in enumerate(range(0, len(lines), size)):
        table = pa.Table.from_pylist(lines[start : start + size], ROWS)
        pq.write_table(table, run / "shards" / "data" / f"{number:09}.parquet")
    search = Search(run)
    steps = list(search.take())
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    return search


def pairs_of(search):
    """All pairs of hashes that a search found."""
    tables = [pq.read_table(path).to_pylist() for path in search.pairs]
    return {(row["one"], row["other"]) for rows in tables for row in rows}


@pytest.fixture
def grouped(tmp_path):
    """Groups of pictures given as bytes: the row each row is grouped with, and the groups."""

    def run(contents):
        search = searched(contents, tmp_path / "run")
        with database(tmp_path / "work") as connection:
            open_parquet(connection, search.files, "items")
            group_pictures(connection, search.pairs)
            leaders = [r["grp"] for r in rows(connection, "SELECT row, grp FROM pictures ORDER BY row")]
            return leaders, list(picture_groups(connection))

    return run


def brute_force(contents):
    """Union of all pairs whose hashes are near and whose embeddings agree."""
    seen = [looks_of(read_picture(content)) for content in contents]
    leader = list(range(len(seen)))
    for i, j in combinations(range(len(seen)), 2):
        near = (seen[i].perceptual ^ seen[j].perceptual).bit_count() <= 7
        equal = seen[i].pixels == seen[j].pixels
        if equal or (near and similarity([seen[i].embedding], [seen[j].embedding])[0] >= SAME):
            one, other = leader[i], leader[j]
            leader = [min(one, other) if found in (one, other) else found for found in leader]
    return leader


def test_near_duplicates_equal_brute_force(grouped):
    """Forty pictures, some with noise, resized, re-encoded or repeated: the same groups as over all pairs."""
    contents = []
    for key in range(20):
        contents.append(png(draw(key)))
        if key % 2:
            contents.append(png(draw(key, noise=2 * key)))
        if key % 3 == 0:
            contents.append(png(draw(key).resize((96, 96))))
        if key % 5 == 0:
            contents.append(contents[-1])
    leaders, groups = grouped(contents)
    assert leaders == brute_force(contents)
    assert 10 <= len(groups) <= 20
    assert sum(g.rows for g in groups) == sum(
        leaders.count(leader) for leader in set(leaders) if leaders.count(leader) > 1
    )


@pytest.mark.parametrize("tables", [SEVEN_BITS, THREE_BITS])
def test_near_hashes_equal_brute_force(tables):
    """Random flips of 0 to 12 bits of 64, and hashes that differ in their highest bits: the pairs over all pairs."""
    rng = np.random.default_rng(0)
    hashes = {0, 1 << 63, 2**64 - 1, (1 << 63) - 1}
    for base in rng.integers(0, 2**64, 60, np.uint64):
        for flips in (0, 1, 2, 3, 4, 7, 8, 12):
            bits = rng.choice(64, flips, replace=False)
            hashes.add(int(base) ^ sum(1 << int(b) for b in bits))
    found = set()
    for one, other in near_hashes(np.array(list(hashes), np.uint64), tables):
        found |= set(zip(one.tolist(), other.tolist(), strict=True))
    pairs = combinations(sorted(hashes), 2)
    assert found == {(a, b) for a, b in pairs if (a ^ b).bit_count() <= tables.bits}
    assert len(found) > 100


def test_chunks_of_candidates_change_no_pair(monkeypatch):
    """Hashes of one key, compared a few pairs at a time: each pair of them once."""
    monkeypatch.setattr("unmemorize.data.near_hashes.CHUNK", 5)
    hashes = np.arange(8, dtype=np.uint64)  # all within three bits; their upper blocks agree
    found = [
        pair
        for one, other in near_hashes(hashes, THREE_BITS)
        for pair in zip(one.tolist(), other.tolist(), strict=True)
    ]
    assert set(found) == set(combinations(range(8), 2))
    assert len(found) == 28 * 10  # in each of the 10 tables whose key leaves out the lowest block


@pytest.mark.parametrize("hashes", [[], [3]])
def test_no_pairs_of_less_than_two_hashes(hashes):
    """Nothing, and no error."""
    assert list(near_hashes(np.array(hashes, np.uint64), SEVEN_BITS)) == []


def test_the_rule_is_the_same_among_many_hashes(grouped, monkeypatch):
    """A copy at four to seven bits is found by its cell."""
    original, copy = read_picture(png(draw(4))), read_picture(png(draw(4, noise=12)))
    one, other = looks_of(original), looks_of(copy)
    assert 3 < (one.perceptual ^ other.perceptual).bit_count() <= 7
    assert are_near_duplicates(one, other)
    monkeypatch.setattr("unmemorize.data.candidates.MANY", 1)
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 1)
    assert grouped([png(draw(4)), png(draw(4, noise=12))])[0] == [0, 0]


@pytest.fixture
def contents():
    """Pictures and copies of them with noise, a flat one, and a caption without a picture."""
    kept = [png(draw(key, noise=noise)) for key in range(20) for noise in (0, 8, 14, 20)]
    return [*kept, png(Image.new("RGB", (32, 32), "red")), None]


def test_many_hashes_are_found_by_cells(contents, tmp_path, monkeypatch):
    """Pairs within three bits, and those within seven of pictures that share a cell; `meets` says the same of each."""
    monkeypatch.setattr("unmemorize.data.candidates.MANY", 10)
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 40)
    search = searched(contents, tmp_path / "run", size=30)
    found = pairs_of(search)
    looks = [looks_of(read_picture(content)) for content in contents if content]
    expected, missed = set(), 0
    for one, other in combinations(looks, 2):
        if one.perceptual != other.perceptual:
            pair = min(one.perceptual, other.perceptual), max(one.perceptual, other.perceptual)
            expected |= {pair} if search.meets(one, other) else set()
            missed += (pair[0] ^ pair[1]).bit_count() <= 7 and not search.meets(one, other)
    assert found == expected
    assert sum((one ^ other).bit_count() > 3 for one, other in found) > 10
    assert missed  # forty cells, of eighty pictures
    assert search.how == (
        "all pairs within 3 bits, and those within 7 that share one of their 2 nearest of 40 cells of embeddings"
    )


def test_a_flat_picture_is_in_no_cell(tmp_path, monkeypatch):
    """Nor does it meet another, whatever their hashes; alone it makes a cell that is empty."""
    monkeypatch.setattr("unmemorize.data.candidates.MANY", 0)
    flat = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    search = searched([png(picture) for picture in flat], tmp_path / "run")
    looks = looks_of(flat[0])
    assert not search.meets(looks, replace(looks, perceptual=looks.perceptual ^ 0b11111))
    assert [len(pq.read_table(path)) for path in (tmp_path / "run" / "shards" / "cells").iterdir()] == [0]


def test_captions_alone_are_in_no_cell(contents, tmp_path, monkeypatch):
    """A file of rows, or a part of one, without a picture: it was read as vectors of no length."""
    monkeypatch.setattr("unmemorize.data.candidates.MANY", 10)
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 40)
    found = pairs_of(searched(contents, tmp_path / "run", size=41))
    assert pairs_of(searched([*contents[:41], *[None] * 41, *contents[41:]], tmp_path / "run", size=41)) == found


def test_a_search_goes_on_and_is_shared(contents, tmp_path, monkeypatch):
    """A shard that is gone, or is damaged, is made again, to the same bytes; the others are not."""
    monkeypatch.setattr("unmemorize.data.candidates.MANY", 10)
    monkeypatch.setattr("unmemorize.data.near_cells.CELLS", 40)
    search = searched(contents, tmp_path / "run", size=30)
    made = sorted((tmp_path / "run" / "shards").glob("[cp]*/*.parquet"))
    assert len(made) == 1 + 3 + 20 + 16
    before = [path.read_bytes() for path in made]
    made[0].unlink()
    made[2].write_bytes(b"PAR1")
    kept = made[-1].stat().st_mtime_ns
    assert len(list(Search(tmp_path / "run").take())) == len(made)
    assert [path.read_bytes() for path in made] == before
    assert made[-1].stat().st_mtime_ns == kept
    assert pairs_of(search)


def test_pairs_of_a_cell_equal_brute_force():
    """Hashes in two cells: those of one that differ in four to seven bits."""
    rng = np.random.default_rng(0)
    hashes = np.repeat(rng.integers(0, 2**64, 20, np.uint64), 9)
    for place in range(len(hashes)):
        hashes[place] ^= sum(np.uint64(1) << np.uint64(bit) for bit in rng.choice(64, place % 5, replace=False))
    cells = rng.integers(0, 3, len(hashes)).astype(np.uint16)
    found = set()
    for one, other in near_in_cells(cells, hashes):
        found |= set(zip(one.tolist(), other.tolist(), strict=True))
    given = list(zip(cells.tolist(), hashes.tolist(), strict=True))
    assert found == {
        (min(a, b), max(a, b))
        for (one, a), (other, b) in combinations(given, 2)
        if one == other and 3 < (a ^ b).bit_count() <= 7
    }
    assert len(found) > 50


def test_hashes_of_one_key_are_compared_with_the_first_alone():
    """Of 1,000 hashes with one key each is compared with ten: some pairs are lost, and none is added."""
    hashes = np.arange(1000, dtype=np.uint64)
    limited, full = (
        {pair for one, other in near_hashes(hashes, SEVEN_BITS, most) for pair in zip(one, other, strict=True)}
        for most in (10, None)
    )
    assert limited < full
    assert len(full) > 3 * len(limited)


def test_a_greyed_copy_is_found_and_another_colour_is_not(grouped):
    """Of a picture, its grey copy and the same shapes in other colours: the grey one goes with both."""
    picture = draw(3)
    recoloured = Image.merge("RGB", picture.split()[::-1])
    assert grouped([png(picture), png(picture.convert("L"))])[0] == [0, 0]
    assert grouped([png(picture), png(recoloured)])[0] == [0, 1]


def never(one, other):
    return False


def test_recall_is_that_of_the_rule():
    """Pictures without colour lose none of their greyed copies; those that are flat lose their smaller copies."""
    grey = [draw(key).convert("L").convert("RGB") for key in range(4)]
    assert measure_recall(grey, are_near_duplicates)["greyed"] == 1
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("red", "white")]
    recall = measure_recall(flat, are_near_duplicates)
    assert recall["half the size"] == 0
    assert set(recall) == set(ALTERATIONS)
    assert measure_recall([], never) == {}


def test_recall_is_that_of_the_search():
    """A copy that is never compared is not found, but for one of equal pixels."""
    grey = [draw(key).convert("L").convert("RGB") for key in range(4)]
    recall = measure_recall(grey, never)
    assert recall.pop("greyed") == 1
    assert set(recall.values()) == {0}


def test_exact_and_near_are_counted_apart(grouped):
    """Two equal files, one other file of the same pixels, one near-duplicate, one other picture."""
    picture = draw(3)
    other_file = png(picture) + b"trailing bytes that no decoder reads"
    near = png(draw(3, noise=4))
    leaders, (group,) = grouped([png(picture), png(picture), other_file, near, png(draw(4))])
    assert leaders == [0, 0, 0, 0, 4]
    assert (group.rows, group.files, group.pixels, group.captions) == (4, 3, 2, 4)
    assert group.tightest == group.loosest
    assert group.tightest[:2] == (0, 3)
    assert SAME <= group.tightest[2] <= 1


def test_tightest_and_loosest_pair(grouped):
    """Three shades of noise: the loosest pair is the first and the last."""
    _, (group,) = grouped([png(draw(5)), png(draw(5, noise=6)), png(draw(5, noise=18))])
    assert group.loosest[:2] == (0, 2)
    assert group.tightest[2] > group.loosest[2]


def test_flat_pictures_of_different_colours_are_different(grouped):
    """Their perceptual hashes agree and say nothing."""
    contents = [png(Image.new("RGB", (32, 32), colour)) for colour in ("red", "blue", "white", "red")]
    assert grouped(contents)[0] == [0, 1, 2, 0]


def test_duplicate_captions(corpus):
    """Equal after normalisation, over one picture or over many."""
    connection = corpus([("A Cat", 1), ("a  cat", 2), ("ａ cat", 2), ("a dog", 3)])
    assert caption_groups(connection, 10) == [{"caption": "A Cat", "rows": 3, "image_groups": 2}]
