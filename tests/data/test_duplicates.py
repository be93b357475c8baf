"""Duplicate pictures: exact and near, against brute force over all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from data_pictures import draw, png
from unmemorize.data.database import database, rows
from unmemorize.data.duplicates import BITS, SAME, caption_groups, group_pictures, picture_groups
from unmemorize.data.hashes import looks, similarity
from unmemorize.data.intake import ROWS


@pytest.fixture
def grouped(tmp_path):
    """Groups of pictures given as bytes: the row each row is grouped with, and the groups."""

    def run(contents):
        lines = [
            {"row": i, "id": str(i), "caption": f"c{i}", "text": f"c{i}", "words": [f"c{i}"]} | vars(looks(content))
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
    seen = [looks(content) for content in contents]
    leader = list(range(len(seen)))
    for i, j in combinations(range(len(seen)), 2):
        near = (seen[i].perceptual ^ seen[j].perceptual).bit_count() <= BITS
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


def test_hashes_within_seven_bits_are_all_found(tmp_path):
    """Random flips of 0 to 12 bits of 64: pairs within seven bits are candidates, others are not."""
    rng = np.random.default_rng(0)
    hashes = []
    for base in rng.integers(0, 2**63, 60):
        for flips in (0, 1, 4, 7, 8, 12):
            bits = rng.choice(64, flips, replace=False)
            hashes.append(int(base) ^ sum(1 << int(b) for b in bits))
    lines = [
        {"row": i, "id": str(i), "caption": "c", "text": "c", "words": ["c"], "pixels": bytes([i // 256, i % 256])}
        | {"file": bytes([i // 256, i % 256]), "perceptual": h, "embedding": bytes(1536)}
        for i, h in enumerate(hashes)
    ]
    with database(tmp_path / "work") as connection:
        connection.register("given", pa.Table.from_pylist(lines, ROWS))
        connection.execute("CREATE TABLE items AS SELECT * FROM given")
        group_pictures(connection)
        found = {(r["one"], r["other"]) for r in rows(connection, "SELECT one, other FROM near")}
    distinct = sorted(set(hashes))
    assert found == {(a, b) for a, b in combinations(distinct, 2) if (a ^ b).bit_count() <= BITS}


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
    from PIL import Image

    contents = [png(Image.new("RGB", (32, 32), colour)) for colour in ("red", "blue", "white", "red")]
    assert grouped(contents)[0] == [0, 1, 2, 0]


def test_duplicate_captions(corpus):
    """Equal after normalisation, over one picture or over many."""
    connection = corpus([("A Cat", 1), ("a  cat", 2), ("ａ cat", 2), ("a dog", 3)])
    assert caption_groups(connection, 10) == [{"caption": "A Cat", "rows": 3, "image_groups": 2}]
