"""A guard before a pipeline: it watches the first step of every call and acts on memorized prompts alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import frozen
from unmemorize.core.model import Prediction
from unmemorize.core.sample import generators
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.mitigate.guard import Limits, limits_of, lower_magnitude
from unmemorize.models.load import wrap
from unmemorize.models.pipeline import PipelineModel

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


@dataclass(frozen=True)
class Outcome:
    """What the guard saw and did in a call: per picture the magnitude before and after, and whether it acted.

    `evaluations` counts what the guard added to the pipeline's own.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    acted: tuple[bool, ...]
    limits: Limits
    evaluations: int


class Guard:
    """A pipeline whose calls are guarded: `Guard(pipe)(prompt=…)` takes and returns what `pipe(prompt=…)` does.

    A call that holds no memorized prompt gives the same bytes as the pipeline alone. Limits are calibrated on ordinary
    prompts at the first call of each first timestep and size, unless they are given.

    Raises:
        NotApplicable: The pipeline is not Stable Diffusion 1 or 2: others give their networks other arguments.

    Paper: Wen et al. 2024, section 4.1.
    Differs: it acts above a threshold only, picture by picture, and reads the score off the pipeline's own first
    evaluation, so that an ordinary call costs nothing.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        ordinary: Sequence[str] = (),
        limits: Limits | None = None,
        false_alarms: float = 0.01,
        iterations: int = 10,
    ) -> None:
        if type(pipe).__name__ != "StableDiffusionPipeline":
            raise NotApplicable(
                f"a guard cannot watch the calls of a {type(pipe).__name__}: generate with the guard as a mitigation, "
                "`unmemorize generate --mitigation guard`, which every family has"
            )
        self.pipe = pipe
        self.outcome: Outcome | None = None
        self._model = wrap(pipe)
        self._fixed, self._false_alarms, self._iterations = limits, false_alarms, iterations
        self._calibrated: dict[tuple[object, ...], Limits] = {}
        # Encoded here: in the middle of a call the text encoder may be off the device.
        self._empty = self._model.encode([""]).embeds
        self._ordinary = None if limits else self._model.encode(list(ordinary) or ordinary_prompts()).embeds

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the pipeline."""
        with self._watching():
            return self.pipe(*arguments, **named)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self.outcome = None
        changed: Tensor | None = None

        def before(
            module: Any, arguments: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return arguments, named if changed is None else named | {"encoder_hidden_states": changed}

        def after(
            module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: tuple[Tensor]
        ) -> tuple[Tensor] | None:
            nonlocal changed
            if self.outcome is not None:
                return None
            x, t = arguments
            call = _Call(self._model, module.forward, x, t, named)
            self.outcome, changed = self._judge(call, output[0])
            return None if changed is None else module.forward(*arguments, **named | {"encoder_hidden_states": changed})

        unet = self.pipe.unet
        handles = [unet.register_forward_pre_hook(before, with_kwargs=True)]
        handles += [unet.register_forward_hook(after, with_kwargs=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _judge(self, call: _Call, output: Tensor) -> tuple[Outcome, Tensor | None]:
        """Score the call's first evaluation and lower what is over the threshold: all embeddings, if any changed."""
        guided = self.pipe.do_classifier_free_guidance
        count = len(call.x) // 2 if guided else len(call.x)
        rows = torch.arange(len(call.x) - count, len(call.x), device=call.x.device)  # the conditional half comes second
        empty = self._empty.to(call.embeds).expand(count, -1, -1)
        at_hand = guided and torch.equal(call.embeds[:count], empty)  # not under a negative prompt
        uncond = call.read(output[:count], call.x[rows]) if at_hand else call.predict(rows, empty)
        score = call.read(output[rows], call.x[rows]).gap(uncond)
        limits = self._limits(call)
        found = score > limits.threshold
        after, changed = score.clone(), None
        if found.any():
            chosen = rows[found]
            with frozen(self.pipe.unet):
                lowered = lower_magnitude(
                    lambda embeds: call.predict(chosen, embeds),
                    call.embeds[chosen],
                    call.read(uncond.output[found], call.x[chosen]),
                    target=limits.target,
                    iterations=self._iterations,
                )
            changed = call.embeds.clone()
            changed[chosen], after[found] = lowered.embeds, lowered.after.to(after)
            call.evaluations += len(call.x)  # the first evaluation is made again
        outcome = Outcome(
            before=tuple(score.tolist()),
            after=tuple(after.tolist()),
            acted=tuple(found.tolist()),
            limits=limits,
            evaluations=call.evaluations,
        )
        return outcome, changed

    def _limits(self, call: _Call) -> Limits:
        if self._fixed is not None:
            return self._fixed
        key = (float(call.t), *call.x.shape[1:])
        if key not in self._calibrated:
            self._calibrated[key] = self._calibrate(call)
        return self._calibrated[key]

    def _calibrate(self, call: _Call) -> Limits:
        """Limits from ordinary prompts, one seed each, at this call's timestep and size."""
        assert self._ordinary is not None  # which it is only where the limits are given
        before, scores = call.evaluations, []
        for numbers in torch.arange(len(self._ordinary)).split(16):
            x = torch.stack([torch.randn(call.x.shape[1:], generator=g) for g in generators(numbers.tolist())])
            rows = torch.full_like(numbers, len(call.x) - 1, device=call.x.device)
            cond = call.predict(rows, self._ordinary[numbers].to(call.embeds), x.to(call.x))
            uncond = call.predict(rows, self._empty.expand(len(x), -1, -1).to(call.embeds), x.to(call.x))
            scores += cond.gap(uncond).tolist()
        call.evaluations = before  # once for all calls like this one: no cost of this call
        return limits_of(scores, false_alarms=self._false_alarms)


guard = Guard  # in code it reads as a verb: guard(pipe)(prompt=…)


class _Call:
    """A call of the UNet, which can be made again for some of its rows, with other embeddings or latents."""

    def __init__(
        self, model: PipelineModel, forward: Callable[..., tuple[Tensor]], x: Tensor, t: Tensor, named: dict[str, Any]
    ) -> None:
        self.x, self.t, self.embeds = x, t, named["encoder_hidden_states"]
        self.evaluations = 0
        self._model, self._forward, self._named = model, forward, named

    def read(self, output: Tensor, x: Tensor) -> Prediction:
        return self._model.interpret(output, x, torch.as_tensor(self.t))

    def predict(self, rows: Tensor, embeds: Tensor, x: Tensor | None = None) -> Prediction:
        x = self.x[rows] if x is None else x
        named = _rows(self._named, rows, len(self.x)) | {"encoder_hidden_states": embeds}
        self.evaluations += len(rows)
        return self.read(self._forward(x, self.t, **named)[0], x)


def _rows(value: Any, rows: Tensor, batch: int) -> Any:
    """The chosen rows of every tensor in nested arguments that has one row a batch element."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {name: _rows(part, rows, batch) for name, part in value.items()}
    return type(value)(_rows(part, rows, batch) for part in value) if isinstance(value, list | tuple) else value
