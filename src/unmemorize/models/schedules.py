"""Sampling schedules, and the noise levels α and σ that a pipeline's timesteps stand for."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable, UserError


class SchedulerRun:
    """A private copy of a diffusers scheduler, set to a number of steps.

    Args:
        scheduler: The pipeline's, which stays as it is.
        steps: Number of steps; `sigmas` or `timesteps` among the settings take its place.
        device: Where timesteps lie.
        settings: What else the pipeline passes to `set_timesteps`.
        begin: The pipeline tells the scheduler that it starts at its first step.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int,
        device: torch.device,
        settings: Mapping[str, Any] | None = None,
        *,
        begin: bool = False,
    ) -> None:
        self._scheduler = copy.deepcopy(scheduler)
        own = dict(settings or {})
        if own.get("sigmas") is None:
            own["num_inference_steps"] = steps
        try:
            self._scheduler.set_timesteps(device=device, **own)
        except ValueError as error:  # more steps than it was trained with
            raise UserError(f"{steps} sampling steps: {error}") from error
        if begin and hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(0)
        parameters = inspect.signature(self._scheduler.step).parameters
        self._takes_generator = "generator" in parameters
        # Pipelines pass their own default of eta; a scheduler's may be another (TCD's is 0.3).
        self._settings = {"eta": 0.0} if "eta" in parameters else {}
        self.timesteps: Tensor = self._scheduler.timesteps
        levels = getattr(self._scheduler, "alphas_cumprod", self.timesteps.new_empty(0))
        if len(levels) and self.timesteps.max() >= len(levels):  # an offset moves the first step beyond the noisiest
            raise UserError(f"{steps} sampling steps: too many for a schedule of {len(levels)} levels: name fewer")
        self.initial_scale = float(getattr(self._scheduler, "init_noise_sigma", 1.0))

    def scale(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoiser's input for the sampler's state `x`."""
        if not hasattr(self._scheduler, "scale_model_input"):
            return x
        scaled: Tensor = self._scheduler.scale_model_input(x, t)
        return scaled

    def step(self, output: Tensor, t: Tensor, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The sampler's next state; the generators feed schedulers that add noise."""
        settings: dict[str, Any] = dict(self._settings)
        if self._takes_generator:
            settings["generator"] = list(generators)
        x_next: Tensor = self._scheduler.step(output, t, x, **settings, return_dict=False)[0]
        return x_next


def require_noise_schedule(scheduler: Any) -> None:
    """Refuse a scheduler whose timesteps are not those of a variance-preserving process.

    Raises:
        NotApplicable: It has no ᾱ, or samples a flow.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if not hasattr(scheduler, "alphas_cumprod"):
        raise NotApplicable(f"{name} has no variance-preserving noise schedule")
    if config.get("use_flow_sigmas") or config.prediction_type not in ("epsilon", "sample", "v_prediction"):
        raise NotApplicable(f"{name} is set to sample a flow, which this network was not trained as")


def require_flow_schedule(scheduler: Any) -> None:
    """Refuse a scheduler that does not sample a flow, or does not repeat itself.

    Raises:
        NotApplicable: It is one of a noise process, or it adds noise, for which flow pipelines pass no generator.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if not name.startswith("FlowMatch") and not config.get("use_flow_sigmas"):
        raise NotApplicable(f"{name} does not sample a flow, which this network was trained as")
    adds_noise = config.get("stochastic_sampling") or config.get("algorithm_type", "").startswith("sde")
    if name == "FlowMatchLCMScheduler" or adds_noise:
        raise NotApplicable(f"{name} adds noise that no seed fixes: the pipeline's pictures do not repeat themselves")


def is_few_step(scheduler: Any) -> bool:
    """Whether it is one that distilled models come with: LCM, TCD, or Euler's with trailing timesteps for ε (Turbo)."""
    name, config = type(scheduler).__name__, scheduler.config
    if name in ("LCMScheduler", "TCDScheduler"):
        return True
    euler = name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    return euler and config.timestep_spacing == "trailing" and config.prediction_type == "epsilon"


class VariancePreserving:
    """Timesteps 0 to T − 1 with α² = ᾱ_t and σ² = 1 − ᾱ_t; samplers such as Euler may visit fractional ones."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        alphas = alphas_cumprod.to("cpu", torch.float64)  # diffusers moves it with what noise is added to
        self._ratio = ((1 - alphas) / alphas).sqrt()  # σ/α; infinite at zero terminal SNR

    def timestep(self, u: Tensor) -> Tensor:
        """The timestep t with u between t / T and (t + 1) / T."""
        return (u.double() * len(self._ratio)).floor().long().clamp(0, len(self._ratio) - 1)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at timesteps of any shape, (n, 1, 1, 1) each, in float64 on the CPU."""
        position = t.to("cpu", torch.float64).clamp(0, len(self._ratio) - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=len(self._ratio) - 1)
        between = torch.lerp(self._ratio[low], self._ratio[high], position - low)
        ratio = torch.where(position == low, self._ratio[low], between)  # between with an infinite one there is NaN
        alpha = (1 + ratio.square()).rsqrt().reshape(-1, 1, 1, 1)
        return alpha, (1 - alpha.square()).sqrt()


class RectifiedFlow:
    """Timesteps t in (0, T] with σ = s·τ / (1 + (s − 1)·τ), τ = t / T, and α = 1 − σ.

    The shift s is 1 where a pipeline tells its network the noise level itself, as most do.
    """

    def __init__(self, training_timesteps: int, shift: float = 1.0) -> None:
        self._total, self._shift = training_timesteps, shift

    def timestep(self, u: Tensor) -> Tensor:
        """The timestep at σ = u."""
        return self._total * u / (self._shift + (1 - self._shift) * u)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at timesteps of any shape, (n, 1, 1, 1) each, in float64 on the CPU."""
        level = (t.to("cpu", torch.float64) / self._total).reshape(-1, 1, 1, 1)
        sigma = self._shift * level / (1 + (self._shift - 1) * level)
        return 1 - sigma, sigma
