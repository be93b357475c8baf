"""The comparison with held-out pictures, where the training set has duplicates."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from unmemorize.core.errors import NotApplicable
from unmemorize.data.pictures import save_image
from unmemorize.metrics.similarity import References
from unmemorize.stages.held_out import compare_held_out
from unmemorize.study.copies import distances


def pictures(count, seed=0):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def nearness(run, training, held_out, generated, masks=None):
    """The p-value of `generated` and the count of those nearer to a training picture, by pixels."""
    rows = [{"id": f"{i}", "seed": 0, "image": f"images/{i}.png"} for i in range(len(generated))]
    for row, image in zip(rows, generated, strict=True):
        save_image(image, run / row["image"])
    (run / "scores").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), run / "scores" / "images.parquet")
    names = tuple(map(str, range(len(training))))
    references = References(names, training, masks or (None,) * len(names), (None,) * len(names))
    compare_held_out(run, references, held_out, distances("", ""), set())
    (found,) = pq.read_table(run / "scores" / "nearness.parquet").to_pylist()
    return found["p_value"], found["nearer"]


def test_one_picture_that_is_there_five_times_is_one_finding(tmp_path):
    """Twelve copies of it, and as many held-out pictures: chance does as well every second time."""
    training = torch.cat([pictures(1).expand(5, -1, -1, -1), pictures(10, 1)])
    p, nearer = nearness(tmp_path, training, pictures(15, 2), pictures(1).expand(12, -1, -1, -1))
    assert nearer == 12
    assert p == pytest.approx(0.5, abs=0.05)


def test_variants_of_a_template_are_one_finding(tmp_path):
    """Each of eight is given back; their mirror images share a layout as well."""
    variants = pictures(8)
    variants[:, :, :40] = variants[0, :, :40].clone()
    training = torch.cat([variants, pictures(4, 1)])
    masks = ((0, 40, 64, 64),) * 8 + (None,) * 4
    p, nearer = nearness(tmp_path, training, None, variants, masks)
    assert nearer == 8
    assert p == pytest.approx(0.5, abs=0.05)


def test_many_pictures_are_many_findings(tmp_path):
    """Ten of twenty training pictures given back, against twenty others: 20 over 10 of 40 over 10 exchanges."""
    training = pictures(20)
    p, nearer = nearness(tmp_path, training, pictures(20, 1), training[:10])
    assert nearer == 10
    assert p < 0.005


def test_pictures_held_out_that_are_training_pictures_say_nothing(tmp_path):
    """The model's copies are of one picture of both sets; with no other picture there is no test."""
    with pytest.raises(NotApplicable, match="duplicates of training pictures"):
        nearness(tmp_path, pictures(3), pictures(3) + 0.01, pictures(3))
