"""One distribution, four parameterisations, one log-SNR a step: each mitigation samples the same in all."""

from __future__ import annotations

import pytest
import torch

from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler, trajectory

SAMPLER = Sampler(12, 3.0)
KINDS = ["sample", "v_prediction", "flow"]
# Settings in units of ε; what is measured in the trained output is scaled by its known factor.
MITIGATIONS = {
    "static-transition": {},
    "dynamic-transition": {},
    "opposite-guidance": {},
    "opposite-guidance:transition=dynamic": {},
    "batch-wise-noise": {"gamma": 0.7},
    "per-sample-noise:iterations=6": {"target": 0.01},
    "sail:iterations=3,candidates=2": {"target": 0.01, "alpha": 0.05},
}


def predictions(model, mitigation, settings):
    """The clean latents that are predicted for the prompts at every step, of three pictures."""
    name, _, rest = mitigation.partition(":")
    # γ multiplies an output, the others are compared with one.
    scale = {"gamma": model.factor(981)}
    scaled = [f"{key}={value * scale.get(key, 1 / model.factor(981))!r}" for key, value in settings.items()]
    method = parse("mitigation", f"{name}:{','.join([*filter(None, [rest]), *scaled])}")
    with method.applied(Subject(model, SAMPLER)) as changed:
        return plain(model, changed.sampler)


def plain(model, sampler=SAMPLER):
    steps = trajectory(model, model.encode(["pair", "one", "pair"]), seeds=[0, 1, 2], sampler=sampler)
    return torch.stack([step.cond.x0 for step in steps])


@pytest.mark.parametrize("mitigation", MITIGATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sampled_is_the_same(matched, normals, mitigation, kind):
    """Step by step, of a memorizer and of Gaussians; without the mitigation it is something else."""
    settings = MITIGATIONS[mitigation]
    for make in (matched, normals):
        assert torch.allclose(plain(make(kind)), plain(make("epsilon")), atol=1e-6)
        expected = predictions(make("epsilon"), mitigation, settings)
        # Adam's ε, 10⁻⁸, is seen beside gradients of another scale.
        assert torch.allclose(predictions(make(kind), mitigation, settings), expected, atol=1e-3 if settings else 1e-6)
    assert not torch.allclose(expected, plain(normals()), atol=1e-3)
