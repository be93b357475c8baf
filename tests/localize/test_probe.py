"""Batched tests of channel sets say what one at a time says."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmemorize.core.hooks import observed
from unmemorize.localize.probe import CLOSE, MeanProbe, Probe, refine, refine_closely
from unmemorize.localize.reference import Start

CHANNELS, SEEDS = 12, 4


class Table(Probe):
    """Strengths without rhyme or reason: freeing more may lower them."""

    def __init__(self, salt, scale):
        self._seeds = self._order = torch.arange(SEEDS)
        self.salt, self.scale = salt, scale

    def value(self, blocked, seed):
        return hashlib.sha256(bytes([self.salt, int(seed), *blocked.tolist()])).digest()[0] / 255 * self.scale

    def similarity(self, blocked, seeds):
        values = [self.value(row, seed) for row in blocked for seed in seeds]
        return torch.tensor(values).reshape(len(blocked), len(seeds))


def one_at_a_time(table, blocked, items, limit, reached):
    for item in items:
        strength = max(table.value(blocked & ~item, seed) for seed in range(SEEDS))
        if strength <= limit:
            blocked, reached = blocked & ~item, strength
    return blocked, reached


@given(st.integers(0, 255), st.sampled_from([0.501, 0.55, 0.7, 1.0]), st.permutations(range(CHANNELS)))
def test_refining_ahead_is_refining_one_at_a_time(salt, scale, order):
    """Whatever the strengths, the same channels stay blocked, with the same strength."""
    blocked, items = torch.ones(CHANNELS, dtype=torch.bool), torch.eye(CHANNELS, dtype=torch.bool)[list(order)]
    found, strength = refine(Table(salt, scale), blocked, items, 0.5, 9.0)
    expected, expected_strength = one_at_a_time(Table(salt, scale), blocked, items, 0.5, 9.0)
    assert torch.equal(found, expected)
    assert strength == pytest.approx(expected_strength)


class MeanTable(MeanProbe, Table):
    """The same, by the mean of the seeds."""


@given(st.integers(0, 255), st.sampled_from([0.9, 1.0, 1.1]), st.permutations(range(CHANNELS)))
def test_refining_by_the_mean_is_refining_one_at_a_time(salt, scale, order):
    """With the mean SSIM for strength, what is freed and what stays is what one set at a time gives."""
    blocked, items = torch.ones(CHANNELS, dtype=torch.bool), torch.eye(CHANNELS, dtype=torch.bool)[list(order)]
    table = MeanTable(salt, scale)
    found, strength = refine_closely(table, blocked, items, 0.5, 9.0)
    expected = blocked
    for item in items:
        values = [table.value(expected & ~item, seed) for seed in range(SEEDS)]
        if sum(values) / SEEDS <= 0.5:
            expected = expected & ~item
    assert torch.equal(found, expected)
    assert strength == pytest.approx(sum(table.value(expected, seed) for seed in range(SEEDS)) / SEEDS, abs=1e-6)


class Drifting(Table):
    """Strengths by seed: a start, a step for each channel that is freed, and a little without rhyme or reason."""

    def __init__(self, salt, start, step):
        super().__init__(salt, CLOSE / 2)
        self.start, self.step, self.rows = start, step, 0

    def value(self, blocked, seed):
        freed = CHANNELS - int(blocked.sum())
        return self.start[seed] + self.step[seed] * freed + super().value(blocked, seed)

    def similarity(self, blocked, seeds):
        self.rows += len(blocked) * len(seeds)
        return super().similarity(blocked, seeds)


@pytest.mark.parametrize("late", [0.0, 0.004, 0.02, 0.05])
@given(st.integers(0, 255))
def test_seeds_far_below_the_limit_are_left_out_until_they_are_close(late, salt):
    """The result is that of all seeds, even where one that was far decides in the end; far ones cost next to none."""
    start, step = [0.495, 0.45, 0.3, 0.3], [0.0003, late, 0.0, 0.0]
    table = Drifting(salt, start, step)
    blocked, items = torch.ones(CHANNELS, dtype=torch.bool), torch.eye(CHANNELS, dtype=torch.bool)
    found, strength = refine_closely(table, blocked, items, 0.5, 0.5)
    expected, _ = one_at_a_time(Drifting(salt, start, step), blocked, items, 0.5, 0.5)
    assert torch.equal(found, expected)
    assert strength == pytest.approx(max(table.value(found, seed) for seed in range(SEEDS)))
    if not late:
        assert table.rows < 4 * CHANNELS


@given(st.integers(0, 255), st.booleans(), st.sampled_from([0.501, 0.55, 0.7, 1.0]))
def test_strengths_end_with_the_first_surprise(salt, expected, scale):
    """Verdicts are those of the highest seed; a value that meets the limit is exact, another a lower bound above it."""
    sets = torch.rand(9, CHANNELS, generator=torch.Generator().manual_seed(salt)) > 0.5
    table = Table(salt, scale)
    values = table.strengths(sets, 0.5, expected=expected)
    full = table.similarity(sets, torch.arange(SEEDS)).amax(1)
    verdicts = (full <= 0.5).tolist()
    end = verdicts.index(not expected) + 1 if (not expected) in verdicts else len(verdicts)
    assert [value <= 0.5 for value in values] == verdicts[:end]
    for value, exact in zip(values, full.tolist(), strict=False):
        assert value == pytest.approx(exact) if exact <= 0.5 else 0.5 < value <= exact + 1e-6


def test_many_sets_in_one_call_are_each_set_alone(tiny_model):
    """SSIM of every set and seed is that of a call of its own, and no hook is left."""
    widths = {name: layer.out_features for name, layer in tiny_model.text_projections().items()}
    cond, start = tiny_model.encode(["an owl on a fence"]), Start.of(tiny_model, (0, 1, 2))
    free = start.unblocked(tiny_model, cond)[0]
    sets = torch.rand(5, sum(widths.values()), generator=torch.Generator().manual_seed(0)) > 0.5
    sets[0] = False
    seeds = torch.arange(3)
    table = Probe(tiny_model, cond, start, free, seeds, widths).similarity(sets, seeds)
    single = Probe(tiny_model, cond, start, free, seeds, widths, batch=1)
    alone = torch.cat([single.similarity(sets[i : i + 1], seeds) for i in range(5)])
    assert torch.allclose(table, alone, atol=1e-4)
    assert torch.allclose(table[0], torch.ones(3), atol=1e-4)
    assert (table[1:] < 1).all()
    assert not any(module._forward_hooks for module in tiny_model.denoiser.modules())


def test_what_precedes_the_layer_is_not_computed_again(tiny_model):
    """Sets that differ in one layer have the same SSIM with the layers before it replayed, which do not run."""
    layers = tiny_model.text_projections()
    widths = {name: layer.out_features for name, layer in layers.items()}
    cond, start = tiny_model.encode(["an owl on a fence"]), Start.of(tiny_model, (0, 1, 2))
    seeds = torch.arange(3)
    probe = Probe(tiny_model, cond, start, start.unblocked(tiny_model, cond)[0], seeds, widths)
    blocked = torch.rand(sum(widths.values()), generator=torch.Generator().manual_seed(0)) > 0.5
    *earlier, last = widths
    sets = blocked.repeat(widths[last], 1)
    sets[:, -widths[last] :] ^= torch.eye(widths[last], dtype=torch.bool)
    full, calls = probe.similarity(sets, seeds), []
    with probe.changing(last, blocked):
        watched = {name: lambda given: calls.append(given) for name in earlier}
        with observed(tiny_model.denoiser, watched):
            assert torch.allclose(probe.similarity(sets, seeds), full, atol=1e-4)
    assert not calls
    assert torch.allclose(probe.similarity(sets[:1], seeds), full[:1], atol=1e-4)
