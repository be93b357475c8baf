"""Statistics of ordinary prompts, and the threshold."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.errors import UserError
from unmemorize.localize.reference import (
    Start,
    cached_reference,
    calibrate,
    load_reference,
    reference,
    save_reference,
)
from unmemorize.metrics.ssim import scales_for, ssim


def test_statistics_are_mean_and_deviation_of_absolute_values(planted, ordinary, usual):
    """Per channel, over prompts, of the mean over tokens of |value|: the planted layers return the embedding."""
    values = planted.encode(ordinary).embeds.abs().mean(1)
    assert torch.allclose(usual.mean["mid_block.attn2.to_v"], values.mean(0))
    assert torch.allclose(usual.std["mid_block.attn2.to_v"], values.std(0))
    assert usual.prompts == len(ordinary)
    assert usual.evaluations == 10 * len(ordinary)


def test_the_threshold_is_mean_plus_one_deviation_of_pairs(planted, ordinary):
    """Of all pairs of seeds within a prompt, whatever the batch size."""
    start = Start.of(planted, (0, 1, 2))
    pairs = []
    for images in start.unblocked(planted, planted.encode(ordinary[:4])):
        pairs += [ssim(images[i : i + 1], images[j : j + 1], scales_for(16, 16)) for i, j in ((0, 1), (0, 2), (1, 2))]
    values = torch.cat(pairs).double()
    for batch in (1, 64):
        found = calibrate(planted, planted.encode(ordinary[:4]), seeds=(0, 1, 2), batch=batch)
        assert found == pytest.approx(float(values.mean() + values.std()), abs=1e-5)


def test_a_cache_is_read_back_and_only_under_its_key(usual, tmp_path):
    """The same numbers and bytes; another key, a damaged or a missing file is no statistics."""
    path = tmp_path / "cache" / "nemo.safetensors"
    assert load_reference(path, "key") is None
    save_reference(path, usual, "key")
    found = load_reference(path, "key")
    assert found.threshold == usual.threshold
    for name in usual.mean:
        assert torch.equal(found.mean[name], usual.mean[name])
        assert torch.equal(found.std[name], usual.std[name])
    assert load_reference(path, "another") is None
    data = path.read_bytes()
    save_reference(path, found, "key")
    assert path.read_bytes() == data
    path.write_bytes(data[:-8])
    assert load_reference(path, "key") is None


def test_one_prompt_has_no_deviation(planted):
    """Statistics of a single prompt are refused."""
    with pytest.raises(UserError, match="two prompts"):
        reference(planted, planted.encode(["one"]))


def test_a_model_that_predicts_nan_is_refused(planted, ordinary):
    """NaN would compare as not memorized."""
    planted.denoiser.memory.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        calibrate(planted, planted.encode(ordinary))


def test_prompts_without_a_text_are_measured_anew(tiny_model, tmp_path):
    """Nothing tells two such sets apart in a later run, so neither is kept."""
    found = []
    for texts in (["an owl on a fence", "a kite"], ["the old harbour", "a red kite"]):
        cond = tiny_model.encode(texts)
        found.append(cached_reference(tiny_model, cond.with_embeds(cond.embeds), tmp_path))
    layer = next(iter(found[0].mean))
    assert not torch.equal(found[0].mean[layer], found[1].mean[layer])
    assert not list(tmp_path.iterdir())
