"""The static transition point: no guidance while a picture is mostly noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unmemorize.core.bounds import Share
from unmemorize.core.methods import Acts, method
from unmemorize.core.model import DiffusionModel
from unmemorize.core.sample import Sampler, StepState
from unmemorize.mitigate.sampling import BySampler

UNTIL = 0.733  # t = 650 of Stable Diffusion's 1000


def noise_share(model: DiffusionModel, t: Tensor) -> float:
    """σ / (α + σ) at a timestep: at equal log-SNR the same number in every parameterisation, and σ of a flow."""
    alpha, sigma = model.alpha_sigma(t)
    return (sigma / (alpha + sigma)).item()


@dataclass(frozen=True)
class StaticSampler(Sampler):
    """A sampler that guides by another scale, `before`, down to the share `until` of noise."""

    before: float = 0.0
    until: float = UNTIL

    def guide(self, state: StepState) -> Tensor:
        """The family's guidance, or that of the other scale."""
        held_back = noise_share(state.model, state.t) > self.until
        return state.guided(self.before) if held_back else state.output


@method("static-transition", paper="Jain et al. 2025 (STP)", cost="none", needs=("unconditional",))
@dataclass(frozen=True)
class StaticTransition(BySampler):
    """Guide by the prompt only from a fixed noise level on.

    Until then the unconditional prediction is sampled: guided by the prompt from the start, a picture would be drawn
    into the basin of the memorized one.

    Paper: Jain et al. 2025 (STP; the transition at 500 to 700 of 1000 timesteps, 650 for a tuned Stable Diffusion).
    Differs: the level is a share of noise, which all parameterisations have; the number of steps is that of the
    sampler, where the public code goes on with a schedule of 200.

    Attributes:
        until: The share of noise, σ / (α + σ), down to which there is no guidance.
    """

    acts: ClassVar[Acts] = "guidance"
    guided: ClassVar[bool] = True

    until: Share = UNTIL

    def __post_init__(self) -> None:
        require_share(self.until)

    def sampler(self, base: Sampler) -> StaticSampler:
        """Without guidance until then."""
        return StaticSampler(base.steps, base.guidance, until=self.until)


def require_share(until: float) -> None:
    """Refuse what is no share of noise.

    Raises:
        ValueError: It is below 0 or above 1.
    """
    if not 0 <= until <= 1:
        raise ValueError(f"until has to lie between 0 and 1, not at {until}: it is the share σ / (α + σ) of noise")
