"""What does not fit into memory is computed in smaller portions, which are remembered and change nothing else."""

from __future__ import annotations

import pytest
import torch

from unmemorize.attack.dori import Dori
from unmemorize.core.batches import OUT_OF_MEMORY, decoded, in_batches, inverted
from unmemorize.core.errors import UserError
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, first_conditional, first_unconditional, generate, generators
from unmemorize.detect.noise import NoiseGap
from unmemorize.mitigate.guard import magnitudes
from unmemorize.stages.pictures import _sampled

ROOM = 5  # rows


@pytest.fixture
def crowded(oracle, monkeypatch):
    """The closed-form model where five rows fit, the numbers of rows that were tried, and how it denoises with room."""
    model, tried, denoise = oracle, [], oracle.denoise

    def with_little_room(x, t, cond):
        tried.append(len(x))
        if len(x) > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return denoise(x, t, cond)

    monkeypatch.setattr(model, "denoise", with_little_room)
    return model, tried, denoise


def test_halves_until_it_fits_and_remembers(crowded):
    """13 rows: 8 do not fit, 4 do; from then on 4 at a time, and the failed call is in no cost."""
    model, tried, _ = crowded
    x, t, cond = torch.randn(13, 3, 8, 8), torch.tensor(500), model.encode(["a"] * 13)

    def predicted(part):
        return model.predict(x[part], t, cond[part]).output

    with model.counted() as cost:
        parts = list(in_batches(model, 13, predicted, size=8))
    assert tried == [8, 4, 4, 4, 1]
    assert model.batch == 4
    assert cost.forward == 13
    assert torch.cat([part for _, part in parts]).shape == x.shape
    assert [part.stop for part, _ in parts] == [4, 8, 12, 13]


def test_what_was_evaluated_before_memory_ran_out_costs_nothing(crowded):
    """Two calls of the denoiser an item, of which the second fails."""
    model, _, _ = crowded
    x, t, cond = torch.randn(4, 3, 8, 8), torch.tensor(500), model.encode(["a"] * 8)

    def twice(part):
        model.predict(x[part], t, cond[part])
        pair = torch.cat([x[part], x[part]])
        return model.predict(pair, t, cond[: len(pair)]).output

    with model.counted() as cost:
        list(in_batches(model, 4, twice, size=4, rows=2))
    assert cost.forward == 12
    assert model.batch == 4


@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access", "shape '[2]' is invalid"])
def test_other_errors_pass(oracle, message):
    """Halving would hide what is wrong."""

    def fails(part):
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message.split()[0]):
        list(in_batches(oracle, 4, fails, size=4))
    assert oracle.batch is None


def test_one_that_does_not_fit_is_a_mistake_with_its_remedy(oracle):
    """Of the CPU's allocator, as it says so."""

    def fails(part):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match="--offload"):
        list(in_batches(oracle, 4, fails, size=4))
    assert "--dtype" in OUT_OF_MEMORY


@pytest.mark.parametrize("coded", [decoded, inverted])
def test_pictures_are_coded_as_many_as_fit(oracle, monkeypatch, coded):
    """Both ways, eight at once where five fit."""
    name = {decoded: "decode", inverted: "invert"}[coded]
    code, given = getattr(oracle, name), torch.rand(8, 3, 8, 8)

    def with_little_room(part):
        if len(part) > ROOM:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return code(part)

    monkeypatch.setattr(oracle, name, with_little_room)
    torch.testing.assert_close(coded(oracle, given), code(given))
    assert oracle.batch == 4


def test_results_are_those_of_a_machine_with_room(crowded, monkeypatch):
    """Pictures, scores at the first step and along the way, limits, an attack: for each the same, and its cost."""
    model, tried, denoise = crowded
    cond, seeds = model.encode(["one", "pair", "all"] * 2), tuple(range(6))
    latents = model.noise(generators(seeds))
    sampler = Sampler(4, 3.0)
    subject = Subject(model, sampler)

    def everything():
        with model.counted() as cost:
            pictures = generate(model, cond, seeds=seeds, sampler=sampler)
            empty = first_unconditional(model, seeds=seeds, steps=4)
            first = first_conditional(model, cond, empty, steps=4).output
            along = NoiseGap(first=0, last=3).score(subject, cond, seeds=seeds).by_seed
            sampled, curves = _sampled(subject, cond, seeds)
            limits = torch.tensor(magnitudes(subject, cond, seeds))
            attacked = Dori(updates=2, batch=2).attack(subject, latents, cond, seeds=seeds).last.embeds
        return (pictures, first, along, sampled, torch.tensor(curves), limits, attacked), cost.forward

    little, cost = everything()
    assert max(tried) > ROOM >= model.batch
    monkeypatch.setattr(model, "denoise", denoise)
    model.batch = None
    much, same_cost = everything()
    assert cost == same_cost
    for a, b in zip(little, much, strict=True):
        torch.testing.assert_close(a, b)
