"""Duplicate pictures: exact and near, against brute force over all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_pictures import draw, png
from unmemorize.core.pictures import read_picture
from unmemorize.data.database import database, rows
from unmemorize.data.duplicates import SAME, Rule, caption_groups, group_pictures, picture_groups
from unmemorize.data.hashes import file_looks, looks_of, similarity
from unmemorize.data.intake import ROWS
from unmemorize.data.near_hashes import SEVEN_BITS, THREE_BITS, near_hashes
from unmemorize.data.recall import ALTERATIONS, measure_recall


@pytest.fixture
def grouped(tmp_path):
    """Groups of pictures given as bytes: the row each row is grouped with, and the groups."""

    def run(contents):
        lines = [
            {"row": i, "id": str(i), "caption": f"c{i}", "text": f"c{i}", "words": [f"c{i}"]} | file_looks(content)
            for i, content in enumerate(contents)
        ]
        with database(tmp_path / "work") as connection:
            connection.register("given", pa.Table.from_pylist(lines, ROWS))
            connection.execute("CREATE TABLE items AS SELECT * FROM given")
            group_pictures(connection)
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


def test_many_hashes_are_compared_within_three_bits(grouped, monkeypatch):
    """The rule says so, and a copy at four to seven bits is no longer found."""
    original, copy = read_picture(png(draw(4))), read_picture(png(draw(4, noise=12)))
    one, other = looks_of(original), looks_of(copy)
    assert 3 < (one.perceptual ^ other.perceptual).bit_count() <= 7
    assert Rule(7)(one, other)
    assert not Rule(3)(one, other)
    contents = [png(draw(4)), png(draw(4, noise=12))]
    assert grouped(contents)[0] == [0, 0]
    monkeypatch.setattr("unmemorize.data.duplicates.MANY", 1)
    assert grouped(contents)[0] == [0, 1]


def test_a_greyed_copy_is_found_and_another_colour_is_not(grouped):
    """Of a picture, its grey copy and the same shapes in other colours: the grey one goes with both."""
    picture = draw(3)
    recoloured = Image.merge("RGB", picture.split()[::-1])
    assert grouped([png(picture), png(picture.convert("L"))])[0] == [0, 0]
    assert grouped([png(picture), png(recoloured)])[0] == [0, 1]


def test_recall_is_that_of_the_rule():
    """Pictures without colour lose none of their greyed copies; those that are flat lose their smaller copies."""
    grey = [draw(key).convert("L").convert("RGB") for key in range(4)]
    assert measure_recall(grey, Rule(7))["greyed"] == 1
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("red", "white")]
    recall = measure_recall(flat, Rule(7))
    assert recall["half the size"] == 0
    assert set(recall) == set(ALTERATIONS)
    assert measure_recall([], Rule(7)) == {}


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
