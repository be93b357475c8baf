"""NeMo finds the channel that was planted, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject
from unmemorize.localize.nemo import Nemo
from unmemorize.localize.reference import Start, activations, reference
from unmemorize.metrics.ssim import scales_for, ssim

LAYER, CHANNEL = "mid_block.attn2.to_v", 5


def nemo(model, prompts, usual, method=Nemo(), ordinary=None):
    cond = None if ordinary is None else model.encode(ordinary)
    return replace(method, reference=usual).find(Subject(model), model.encode(prompts), ordinary=cond)


def places(found):
    return {name: mask.nonzero()[:, 0].tolist() for name, mask in found.masks.items()}


@pytest.mark.parametrize("layers", ["down-mid", "all"])
def test_the_planted_channel_is_found_and_nothing_else(planted, usual, layers):
    """One channel of one layer carries the copy: that one is returned, with the similarity before and after."""
    found = nemo(planted, ["memorized"], usual, Nemo(layers=layers))
    assert places(found) == {LAYER: [CHANNEL]}
    assert found.per_layer == {LAYER: 1}
    facts = found.per_prompt[0].facts
    assert facts["hidden"] == 1
    assert facts["strength"] > 0.9
    assert facts["ssim"] <= usual.threshold


def test_the_unneeded_are_freed(planted, usual):
    """Channels that a low θ brings in are let go, whole layers and single ones."""
    settings = Nemo(start=0.5, minimum=0.5)
    values = activations(planted, planted.encode(["memorized"]), "down-mid")
    chosen = int(settings.sweep(values, usual)[0].sum())
    found = nemo(planted, ["memorized"], usual, settings)
    assert chosen > 5
    assert found.per_prompt[0].facts["initial"] == chosen
    assert places(found) == {LAYER: [CHANNEL]}
    kept = nemo(planted, ["memorized"], usual, replace(settings, refine=False))
    assert kept.selected == chosen


def test_a_prompt_that_is_not_memorized_has_no_channels(planted, usual):
    """It costs one evaluation a seed, says how strong it was, and does not disturb the others."""
    settings = Nemo(threshold=0.5)
    with planted.counted() as cost:
        found = nemo(planted, ["a new prompt"], usual, settings)
    assert found.selected == 0
    assert found.masks == {}
    assert found.evaluations == cost.forward == 10
    assert found.per_prompt[0].facts["strength"] <= 0.5
    both = nemo(planted, ["a new prompt", "memorized"], usual, settings)
    assert [bool(prompt.masks) for prompt in both.per_prompt] == [False, True]


def test_where_nothing_suffices_the_last_round_is_refined(planted, usual):
    """With a threshold out of reach, what the last θ blocked is kept as far as it helps, and the record says so."""
    found = nemo(planted, ["memorized"], usual, Nemo(threshold=-0.5, minimum=3.0))
    facts = found.per_prompt[0].facts
    assert facts["hidden"] == 0
    assert found.masks[LAYER][CHANNEL]
    assert facts["ssim"] <= facts["initial_ssim"] + 1e-3


def test_ordinary_prompts_give_a_limit_that_can_be_met(planted, usual, ordinary):
    """Where the published rule hides nothing, ours ends at the planted channel; its limit is that of plain loops."""
    settings = Nemo(threshold=-0.5)
    published = nemo(planted, ["memorized"], usual, settings)
    ours = nemo(planted, ["memorized"], usual, replace(settings, rule="ordinary"), ordinary=ordinary)
    assert published.per_prompt[0].facts["hidden"] == 0
    assert places(ours) == {LAYER: [CHANNEL]}
    facts = ours.per_prompt[0].facts
    assert facts["hidden"] == 1
    assert facts["ssim"] <= facts["limit"] < 1
    start, everyone = Start.of(planted, range(settings.seeds)), [*ordinary, "memorized"]
    differences = [start.unblocked(planted, planted.encode([prompt]))[0] for prompt in everyone]
    means = []
    for other in differences[:-1]:
        by_seed = [
            float(ssim(a[None], b[None], scales_for(16, 16))) for a, b in zip(differences[-1], other, strict=True)
        ]
        means.append(np.mean(by_seed))
    assert facts["limit"] == pytest.approx(np.quantile(means, 0.95), abs=1e-5)
    assert ours.parameters["rule"] == "ordinary"
    with pytest.raises(UserError, match="ordinary prompts"):
        nemo(planted, ["memorized"], usual, replace(settings, rule="ordinary"))


def test_a_second_search_finds_the_same_at_any_batch_size(planted, usual):
    """Masks and facts do not depend on how many rows the denoiser is given at a time."""
    prompts = ["memorized", "a new prompt"]
    runs = [nemo(planted, prompts, usual, Nemo(minimum=0.25, batch=batch)) for batch in (64, 64, 7)]
    for run in runs[1:]:
        assert places(run) == places(runs[0])
        for mine, first in zip(run.per_prompt, runs[0].per_prompt, strict=True):
            assert mine.facts == pytest.approx(first.facts, abs=1e-5)
    assert runs[1].per_prompt[0].facts == runs[0].per_prompt[0].facts


def test_the_sweep_lowers_the_z_score_and_widens_the_top(planted, usual):
    """Round k holds z > 5 − k / 4 and the k strongest of each layer, down to θ = 1 and including it."""
    values = activations(planted, planted.encode(["memorized"]), "down-mid")
    rounds = []
    for k in range(17):
        parts = []
        for name, (a,) in values.items():
            z = (a - usual.mean[name]).abs() / usual.std[name]
            rank = a.argsort(descending=True).argsort()
            parts.append((z > 5 - 0.25 * k) | (rank < k))
        rounds.append(torch.cat(parts))
    assert torch.equal(Nemo().sweep(values, usual), torch.stack(rounds).unique_consecutive(dim=0))


def test_the_record_says_how(planted, usual):
    """Small latents have one scale; threshold and settings are kept with the result."""
    found = nemo(planted, ["memorized"], usual)
    assert found.parameters["scales"] == 1
    assert found.parameters["threshold"] == usual.threshold
    assert found.parameters["layers"] == "down-mid"
    assert found.seeds == tuple(range(10))


def test_layers_come_in_the_order_of_execution(tiny_model):
    """A UNet lists its middle last; the way up can be left out."""
    every = [name.split(".")[0] for name in tiny_model.text_projections()]
    assert every == sorted(every, key=["down_blocks", "mid_block", "up_blocks"].index)
    some = tiny_model.text_projections("down-mid")
    assert list(some) == list(tiny_model.text_projections())[: len(some)]
    assert {name.split(".")[0] for name in some} == {"down_blocks", "mid_block"}


def test_a_model_without_the_layers_is_not_applicable(oracle, planted, usual):
    """No cross-attention at all, or none in the layers asked for."""
    with pytest.raises(NotApplicable, match="cross-attention"):
        reference(oracle, oracle.encode(["one", "other"]))
    del planted.denoiser.down_blocks, planted.denoiser.mid_block
    with pytest.raises(NotApplicable, match="on its way down"):
        nemo(planted, ["memorized"], usual)


def test_what_cannot_be_searched_is_refused(planted, usual, tiny_model):
    """One seed, an empty sweep, another model's statistics, NaN weights: a line each."""
    for settings in ({"seeds": 1}, {"minimum": 6}, {"decrement": 0}):
        with pytest.raises(UserError, match="NeMo needs"):
            Nemo(**settings)
    with pytest.raises(UserError, match="another model"):
        nemo(tiny_model, ["an owl on a fence"], usual)
    with torch.no_grad():
        planted.denoiser.mid_block.attn2.to_v.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=LAYER):
        nemo(planted, ["memorized"], usual)


def test_a_cache_that_is_no_folder_is_refused_at_once(tmp_path):
    """Before anything is measured that could not be kept."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no folder"):
        Nemo(cache=str(tmp_path / "file"))
