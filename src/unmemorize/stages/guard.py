"""A guard before a pipeline: it watches the first step of every call and acts on memorized prompts alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.hooks import frozen
from unmemorize.core.model import Condition
from unmemorize.core.run import digest
from unmemorize.core.sample import normal
from unmemorize.mitigate.guard import Limits, limits_of, lower_magnitude
from unmemorize.models.load import wrap
from unmemorize.models.pipeline import PipelineModel

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# Arguments of pipelines that reach the guard through the denoiser's calls, or change nothing there. Any other may
# change how prompts are read, or what is predicted for them, in ways that the guard's own evaluations would miss.
SEEN = {
    "prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3",
    "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
    "prompt_attention_mask", "negative_prompt_attention_mask", "prompt_embeds_mask", "negative_prompt_embeds_mask",
    "num_images_per_prompt", "height", "width", "original_size", "crops_coords_top_left", "target_size",
    "use_resolution_binning", "generator", "latents", "num_inference_steps", "timesteps", "sigmas", "mu", "eta",
    "denoising_end", "guidance_scale", "true_cfg_scale", "guidance_rescale", "cfg_normalization", "cfg_trunc_ratio",
    "output_type", "return_dict", "callback_on_step_end", "callback", "callback_steps",
}  # fmt: skip
ATTENTION = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
EMBEDS, POSITIONS = "encoder_hidden_states", ("txt_ids", "img_ids")
SAME = 0.01  # of its norm, by which an embedding may differ from the empty prompt's: batches of encoders round apart
AT_ONCE = 16  # ordinary prompts that are scored together


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
    prompts at the first call of each kind (first timestep, size, and what else the denoiser is given beside text),
    unless they are given.

    Paper: Wen et al. 2024, section 4.1.
    Differs: it acts above a threshold only, picture by picture. Where the pipeline evaluates prompt and empty prompt in
    one call, the score is read off that call, so that an ordinary one costs nothing; elsewhere it costs an evaluation a
    picture.

    Args:
        pipe: A loaded pipeline of a family that has an adapter.
        ordinary: Prompts like those that will be served, none of them memorized: 99 or more for 1% false alarms.
        limits: Limits measured before, for this model, first timestep and size.
        false_alarms: The share of pictures of ordinary prompts that may be acted on.
        iterations: Updates of an embedding, at most.

    Raises:
        NotApplicable: The pipeline's calls cannot be watched.
        UserError: Neither ordinary prompts nor limits are given.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        *,
        ordinary: Sequence[str] = (),
        limits: Limits | None = None,
        false_alarms: float = 0.01,
        iterations: int = 10,
    ) -> None:
        self.pipe = pipe
        self.outcome: Outcome | None = None
        self._model = wrap(pipe)
        _require_watchable(self._model)
        if limits is None and not ordinary:
            raise UserError(
                "the guard does not know what is ordinary for this model: pass ordinary=[…], prompts like those you "
                "serve (99 or more for 1% false alarms), or limits=Limits(…) measured before"
            )
        self._fixed, self._false_alarms, self._iterations = limits, false_alarms, iterations
        self._calibrated: dict[str, Limits] = {}
        # Encoded here: in the middle of a call the text encoder may be off the device.
        self._empty = self._model.unconditional(1)
        self._ordinary = None if limits else self._model.encode(list(ordinary)).to("cpu")

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the pipeline.

        Raises:
            UserError: An argument changes predictions in a way that the guard cannot see, or gradients are off.
            NotApplicable: The network has its guidance built in, and the call asks for no unconditional branch.
        """
        parameters = inspect.signature(self.pipe.__call__)
        given = parameters.bind(*arguments, **named)
        given.apply_defaults()
        _require_seen(self._model, parameters.parameters, given.arguments)
        with self._watching(stacked=not self._model.apart and given.arguments["guidance_scale"] > 1):
            return self.pipe(*arguments, **named)

    @contextmanager
    def _watching(self, *, stacked: bool) -> Iterator[None]:
        """Judge the first call of the denoiser, and swap embeddings in all if it is to change.

        A family whose calls are `stacked` gives both halves of guidance to one, the unconditional first; of others the
        first call is the conditional one.
        """
        self.outcome = None
        swap: _Swap | None = None

        def before(
            module: Any, arguments: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return arguments, named if swap is None else named | {EMBEDS: swap(named[EMBEDS])}

        def after(
            module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: tuple[Tensor]
        ) -> tuple[Tensor] | None:
            nonlocal swap
            if self.outcome is not None:
                return None
            call = _Call(self._model, arguments, named, stacked=stacked)
            self.outcome, changed = self._judge(call, output[0])
            if changed is None:
                return None
            swap = _Swap(call.embeds, changed, call.conditional)
            again: tuple[Tensor] = module.forward(*arguments, **named | {EMBEDS: changed})
            return again

        denoiser = getattr(self.pipe, self._model.part)
        handles = [denoiser.register_forward_pre_hook(before, with_kwargs=True)]
        handles += [denoiser.register_forward_hook(after, with_kwargs=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _judge(self, call: _Call, output: Tensor) -> tuple[Outcome, Tensor | None]:
        """Score the first call and lower what is over the threshold: the call's embeddings, if any changed."""
        rows, empty = call.conditional, call.fitting(self._empty)
        if call.stacked and call.is_unconditional(empty):
            uncond = call.read(output[: len(rows)])
        else:  # under a negative prompt, without guidance, or in a call of its own that is yet to come
            uncond = call.evaluate(rows, empty[[0] * len(rows)])
        score = _magnitude(call.read(output[rows]), uncond)
        limits = self._limits(call)
        over = score > limits.threshold
        after, changed = score.clone(), None
        if over.any():
            chosen, empty_there = rows[over], uncond[over]

            def magnitude(embeds: Tensor) -> Tensor:
                return _magnitude(call.evaluate(chosen, embeds), empty_there)

            with frozen(self._model.denoiser):
                lowered = lower_magnitude(
                    magnitude, call.embeds[chosen], target=limits.target, iterations=self._iterations
                )
            changed = call.embeds.clone()
            changed[chosen], after[over] = lowered.embeds, lowered.after.to(after)
            call.evaluations += len(call.x)  # the first call is made again
        outcome = Outcome(
            before=tuple(score.tolist()),
            after=tuple(after.tolist()),
            acted=tuple(over.tolist()),
            limits=limits,
            evaluations=call.evaluations,
        )
        return outcome, changed

    def _limits(self, call: _Call) -> Limits:
        if self._fixed is not None:
            return self._fixed
        kind = call.kind(call.fitting(self._empty))
        if kind not in self._calibrated:
            self._calibrated[kind] = self._calibrate(call)
        return self._calibrated[kind]

    def _calibrate(self, call: _Call) -> Limits:
        """Limits from ordinary prompts, one seed each, in calls like this one."""
        assert self._ordinary is not None  # which it is only where the limits are given
        before, scores = call.evaluations, []
        for numbers in torch.arange(len(self._ordinary)).split(AT_ONCE):
            x, rows = normal(call.x[0], numbers.tolist()), call.conditional[-1:].expand(len(numbers))
            cond = call.evaluate(rows, call.fitting(self._ordinary[numbers]), x)
            uncond = call.evaluate(rows, call.fitting(self._empty[[0] * len(numbers)]), x)
            scores += _magnitude(cond, uncond).tolist()
        call.evaluations = before  # once for all calls like this one: no cost of this call
        return limits_of(scores, false_alarms=self._false_alarms)


guard = Guard  # in code it reads as a verb: guard(pipe)(prompt=…)


class _Call:
    """A call of the denoiser, which can be made again for some of its rows, with other prompts or latents.

    Attributes:
        x: What it was given of the pictures, a row each: latents, packed or not.
        embeds: What it was given of the prompts, (rows, tokens, width).
        stacked: Its first half is the unconditional one.
        conditional: The numbers of its conditional rows, one a picture.
        evaluations: Rows evaluated by making it again.
    """

    def __init__(
        self, model: PipelineModel, arguments: tuple[Any, ...], named: dict[str, Any], *, stacked: bool
    ) -> None:
        names = list(inspect.signature(type(model.denoiser).forward).parameters)[1:]  # without self
        self._model, self._pictures = model, names[0]
        self._named: dict[str, Any] = dict(zip(names, arguments, strict=False)) | named
        self.x: Tensor = self._named[self._pictures]
        self.embeds: Tensor = self._named[EMBEDS]
        self.stacked, self.evaluations = stacked, 0
        self.conditional = torch.arange(len(self.x) // 2 if stacked else 0, len(self.x), device=self.x.device)

    def fitting(self, cond: Condition) -> Condition:
        """The prompts where and in the precision in which the call has its own."""
        return cond.to(self.embeds.device, self.embeds.dtype)

    def is_unconditional(self, empty: Condition) -> bool:
        """Whether its first row is the empty prompt's."""
        given, expected = self.embeds[0].float(), empty.embeds[0].float()
        return given.shape == expected.shape and bool((given - expected).norm() <= SAME * expected.norm())

    def read(self, output: Tensor) -> Tensor:
        """What was predicted, without the variance that some networks say beside it."""
        return output[:, : self.x.shape[1]]

    def evaluate(self, rows: Tensor, text: Condition | Tensor, x: Tensor | None = None) -> Tensor:
        """What is predicted in some of its rows for other prompts, or embeddings alone, and other latents."""
        named = self._row(rows) if x is None else self._row(rows) | {self._pictures: x}
        if isinstance(text, Condition):
            named = self._model.with_text(named, self._model.complete(text))
        else:
            named[EMBEDS] = text
        self.evaluations += len(rows)
        return self.read(self._model.denoiser.forward(**named)[0])

    def kind(self, empty: Condition) -> str:
        """A name for all that it was given beside text and latents: limits hold for calls that agree in it."""
        named = self._model.with_text(self._row(self.conditional[-1:]), self._model.complete(empty))
        named |= {self._pictures: self.x.shape[1:], EMBEDS: None}
        parts = []
        for leaf in tree_leaves(named):
            parts.append(leaf.float().cpu().numpy().tobytes() if isinstance(leaf, Tensor) else repr(leaf).encode())
        return digest(parts)

    def _row(self, rows: Tensor) -> dict[str, Any]:
        return {name: _rows(name, value, rows, len(self.x)) for name, value in self._named.items()}


@dataclass(frozen=True)
class _Swap:
    """Puts changed embeddings in the place of those given, in every call for these prompts.

    A callback may have dropped the unconditional half.
    """

    given: Tensor
    changed: Tensor
    conditional: Tensor

    def __call__(self, embeds: Tensor) -> Tensor:
        if embeds is self.given or torch.equal(embeds, self.given):
            return self.changed
        if torch.equal(embeds, self.given[self.conditional]):
            return self.changed[self.conditional]
        return embeds


def _magnitude(cond: Tensor, uncond: Tensor) -> Tensor:
    """‖cond − uncond‖₂ of each picture, (n,) in float32: packing latents leaves a norm as it is."""
    norm: Tensor = (cond.float() - uncond.float()).flatten(1).norm(dim=1)
    return norm


def _rows(name: str, value: Any, rows: Tensor, batch: int) -> Any:
    """The chosen rows of what has one row a batch element, in nested arguments."""
    if isinstance(value, Tensor):
        shared = name in POSITIONS and value.ndim == 2
        return value[rows] if value.ndim and len(value) == batch and not shared else value
    if isinstance(value, dict):
        return {key: _rows(key, part, rows, batch) for key, part in value.items()}
    return [value[i] for i in rows.tolist()] if isinstance(value, list) and len(value) == batch else value


def _require_watchable(model: PipelineModel) -> None:
    """Refuse a pipeline whose denoiser's calls cannot be watched, or made again.

    Raises:
        NotApplicable: It is compiled in place, or takes lists.
    """
    if getattr(model.denoiser, "_compiled_call_impl", None) is not None:
        raise NotApplicable(
            "a denoiser compiled in place ignores hooks: compile it by "
            f"pipe.{model.part} = torch.compile(pipe.{model.part})"
        )
    if not model.in_rows:
        raise NotApplicable(
            f"a guard cannot watch the calls of a {type(model.pipe).__name__}, whose prompts have no rows of their "
            "own: generate with the guard as a mitigation, `unmemorize generate --mitigation guard`"
        )


def _require_seen(model: PipelineModel, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    """Refuse a call that the guard would misjudge.

    Raises:
        UserError: An argument changes predictions in a way that the guard cannot see, or gradients are off.
        NotApplicable: The network has its guidance built in, and the call asks for no unconditional branch.
    """
    for name in _unseen(model, parameters, given):
        raise UserError(f"{name}: the guard cannot see what it changes: leave it out, or call the pipeline without")
    if torch.is_inference_mode_enabled():
        raise UserError("the guard needs gradients: call it under torch.no_grad(), not torch.inference_mode()")
    negative = any(given.get(name) is not None for name in ("negative_prompt", "negative_prompt_embeds"))
    if model.distilled and not (negative and given.get("true_cfg_scale", 0) > 1):
        raise NotApplicable(
            "the guard compares with an unconditional branch, and this network has its guidance built in instead: "
            "pass true_cfg_scale above 1 with a negative prompt, where the pipeline takes them"
        )


def _unseen(
    model: PipelineModel, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]
) -> Iterator[str]:
    """The arguments that change predictions in a way that the guard cannot see."""
    for name, value in given.items():
        if parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            yield from value
        elif name in ATTENTION:
            yield from (f"{name}[{key!r}]" for key in value or () if key != "scale")
            if value and "scale" in value and _has_text_lora(model):
                yield f"{name}['scale'], which a LoRA on a text encoder reads,"
        elif name == "callback_on_step_end_tensor_inputs":
            yield from (f"{name}: {part}" for part in value if "embeds" in part)
        elif name not in SEEN and not _is_usual(value, parameters[name].default):
            yield name


def _has_text_lora(model: PipelineModel) -> bool:
    for component, module in model.pipe.components.items():
        encoder = component.startswith("text_encoder") and module is not None
        if encoder and any("lora_A" in name for name, _ in module.named_modules()):
            return True
    return False


def _is_usual(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and not isinstance(value, Tensor) and value == default)
