"""The contract between a diffusion model and everything that studies it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from unmemorize.core.errors import NotApplicable

Parameterisation = Literal["epsilon", "sample", "v_prediction", "flow"]
Rows = slice | Sequence[int] | Tensor
LEVELS = 1000  # noise levels that a random one is drawn from, on an even grid over (0, 1)


@dataclass(frozen=True)
class Condition:
    """Encoded prompts, one row a prompt.

    Sizes, time ids, rope positions and embedded guidance are not part of it: the adapter makes them.

    Attributes:
        embeds: What the denoiser reads, (n, tokens, width).
        ids: The token ids behind the embeddings, (n, tokens); None where there are none.
        mask: 1 for the tokens that count, (n, tokens); None: all of them.
        pooled: One vector a prompt, (n, width), for families that read one; None: the empty prompt's.
        texts: The prompts; None where embeddings were searched or drawn.
    """

    embeds: Tensor
    ids: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    texts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Rows) -> Condition:
        """Some of the rows."""
        numbers = torch.arange(len(self))[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        index = torch.tensor(numbers, dtype=torch.long, device=self.embeds.device)
        parts: dict[str, Tensor] = {name: tensor[index] for name, tensor in self._tensors.items()}
        texts = None if self.texts is None else tuple(self.texts[i] for i in numbers)
        return Condition(**parts, texts=texts)

    def repeat(self, times: int) -> Condition:
        """Each row `times` in a row: n · times rows."""
        return self[torch.arange(len(self)).repeat_interleave(times)]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """On another device; `dtype` is that of embeddings and pooled vectors."""
        parts: dict[str, Tensor] = {}
        for name, tensor in self._tensors.items():
            parts[name] = tensor.to(device, dtype if tensor.is_floating_point() else None)
        return Condition(**parts, texts=self.texts)

    def with_embeds(self, embeds: Tensor) -> Condition:
        """The same rows with other embeddings (n, tokens, width), which no text stands for any more."""
        return replace(self, embeds=embeds, texts=None)

    def followed_by(self, other: Condition) -> Condition:
        """These rows, then those of `other`, the shorter prompts padded; what one of the two lacks is left out.

        Where only one has a mask the other's tokens count, all of them.
        """
        return joined([self, other])

    @property
    def _tensors(self) -> dict[str, Tensor]:
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "texts"}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _padded(self, tokens: int) -> Condition:
        missing = tokens - self.embeds.shape[1]
        if not missing:
            return self
        masked = self._masked()
        assert masked.mask is not None
        ids = None if self.ids is None else pad(self.ids, (0, missing))
        return replace(self, embeds=pad(self.embeds, (0, 0, 0, missing)), ids=ids, mask=pad(masked.mask, (0, missing)))

    def _masked(self) -> Condition:
        """With a mask of ones where there is none."""
        if self.mask is not None:
            return self
        ones = torch.ones(self.embeds.shape[:2], dtype=torch.long, device=self.embeds.device)
        return replace(self, mask=ones)


def joined(parts: Sequence[Condition]) -> Condition:
    """The rows of all parts, in order, the shorter prompts padded; what one of the parts lacks is left out.

    Where some have a mask the others' tokens count, all of them.

    Raises:
        ValueError: There are no parts.
    """
    if not parts:
        raise ValueError("expected at least one condition, got none")
    longest = max(part.embeds.shape[1] for part in parts)
    padded = [part._padded(longest) for part in parts]
    if any(part.mask is not None for part in padded):
        padded = [part._masked() for part in padded]
    shared = [name for name in padded[0]._tensors if all(name in part._tensors for part in padded)]
    tensors: dict[str, Tensor] = {name: torch.cat([part._tensors[name] for part in padded]) for name in shared}
    texts: list[str] | None = []
    for part in parts:
        texts = None if texts is None or part.texts is None else [*texts, *part.texts]
    return Condition(**tensors, texts=None if texts is None else tuple(texts))


def names_of(given: Sequence[str] | Condition) -> list[str]:
    """The prompts; for embeddings without a text, their row numbers."""
    if not isinstance(given, Condition):
        return list(given)
    return [f"embedding {i}" for i in range(len(given))] if given.texts is None else list(given.texts)


def encoded(model: DiffusionModel, given: Sequence[str] | Condition) -> Condition:
    """Conditions: prompts are encoded, what is a condition already stays as it is."""
    return given if isinstance(given, Condition) else model.encode(given)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser said of x = α·x0 + σ·ε, in whichever parameterisation it was trained in.

    `output` and `x` are (n, c, h, w); `alpha` and `sigma` broadcast against them. For a flow model α = 1 − σ.

    Gaps and errors are measured in the trained output. In ε units they vanish where α = 0, at the first step of every
    flow model and of schedules with zero terminal SNR: there ε is x, whatever the network said.
    """

    output: Tensor
    kind: Parameterisation
    x: Tensor
    alpha: Tensor
    sigma: Tensor

    def __getitem__(self, rows: slice) -> Prediction:
        """Some of the rows."""
        alpha = self.alpha if self.alpha.numel() == 1 else self.alpha[rows]
        sigma = self.sigma if self.sigma.numel() == 1 else self.sigma[rows]
        return Prediction(self.output[rows], self.kind, self.x[rows], alpha, sigma)

    def repeated(self, times: int) -> Prediction:
        """All rows, `times` over, of a prediction whose `alpha` and `sigma` all rows share."""
        output, x = self.output.repeat(times, 1, 1, 1), self.x.repeat(times, 1, 1, 1)
        return Prediction(output, self.kind, x, self.alpha, self.sigma)

    @property
    def eps(self) -> Tensor:
        """The predicted noise."""
        match self.kind:
            case "epsilon":
                return self.output
            case "sample":
                return (self.x - self.alpha * self.output) / self.sigma
            case "v_prediction":
                return self.alpha * self.output + self.sigma * self.x
            case "flow":
                return self.x + self.alpha * self.output

    @property
    def x0(self) -> Tensor:
        """The predicted clean latent."""
        match self.kind:
            case "epsilon":
                return (self.x - self.sigma * self.output) / self.alpha
            case "sample":
                return self.output
            case "v_prediction":
                return self.alpha * self.x - self.sigma * self.output
            case "flow":
                return self.x - self.sigma * self.output

    def with_x0_moved(self, change: Tensor) -> Prediction:
        """The prediction at the same state whose clean latent is this one's plus `change`, (n, c, h, w)."""
        match self.kind:
            case "epsilon":
                moved = -self.alpha / self.sigma * change
            case "sample":
                moved = change
            case "v_prediction" | "flow":
                moved = -change / self.sigma
        return replace(self, output=self.output + moved)

    @property
    def v(self) -> Tensor:
        """The predicted velocity α·ε − σ·x0 of a variance-preserving process."""
        return self.output if self.kind == "v_prediction" else self.alpha * self.eps - self.sigma * self.x0

    @property
    def score(self) -> Tensor:
        """The predicted score, the gradient of log p(x): −ε / σ."""
        return -self.eps / self.sigma

    def gap(self, other: Prediction) -> Tensor:
        """The distance of two predictions at the same x in the trained output, ‖a − b‖₂, (n,) in float32.

        Of a prompt and the empty prompt it is the text-conditional magnitude. Between parameterisations of one
        denoiser ‖Δx̂0‖ = (σ/α) ‖Δε‖ = σ ‖Δv‖, v the velocity of either kind.

        Paper: Wen et al. 2024, section 3.2, the detection metric (in ε, the trained output there).
        Differs: one norm a picture; a norm over the batch would depend on how many pictures share it.
        """
        difference = (self.output.float() - other.output.float()).flatten(1)
        length: Tensor = difference.norm(dim=1)
        return length

    def error(self, x0: Tensor, eps: Tensor) -> Tensor:
        """The mean squared error against what was trained for at x = α·x0 + σ·ε, (n,) in float32."""
        match self.kind:
            case "epsilon":
                target = eps
            case "sample":
                target = x0
            case "v_prediction":
                target = self.alpha * eps - self.sigma * x0
            case "flow":
                target = eps - x0
        return self._squared(target)

    def error_for(self, x0: Tensor) -> Tensor:
        """The mean squared error against `output_for` clean latents, (n,) in float32; one row meets all of them."""
        return self._squared(self.output_for(x0))

    def _squared(self, target: Tensor) -> Tensor:
        return (self.output.float() - target.float()).square().mean(dim=(1, 2, 3))

    def output_for(self, x0: Tensor) -> Tensor:
        """The output at x that says the clean latent is `x0`, whether or not x was made from it."""
        match self.kind:
            case "epsilon":
                return (self.x - self.alpha * x0) / self.sigma
            case "sample":
                return x0
            case "v_prediction":
                return (self.alpha * self.x - x0) / self.sigma
            case "flow":
                return (self.x - x0) / self.sigma


@dataclass(frozen=True)
class Guided:
    """Both predictions of a sampling step, and what guidance makes of them: the scheduler's input, (n, c, h, w)."""

    cond: Prediction
    uncond: Prediction
    output: Tensor


@dataclass
class Cost:
    """What a model was asked for: rows that its denoiser evaluated, those of them with gradients, pictures decoded."""

    forward: int = 0
    backward: int = 0
    decodes: int = 0

    def take_back(self, cost: Cost) -> None:
        """Stop counting."""
        self.forward -= cost.forward
        self.backward -= cost.backward
        self.decodes -= cost.decodes


class Counted:
    """Counts a model's work for whoever asked; an adapter calls `count_rows` and `count_decodes`."""

    def __init__(self) -> None:
        self._costs: list[Cost] = []

    @contextmanager
    def counted(self) -> Iterator[Cost]:
        """The cost of a block, complete once it is left; blocks may be nested, and one that fails costs nothing."""
        cost = Cost()
        self._costs.append(cost)
        try:
            yield cost
        except BaseException:
            for other in self._costs:
                if other is not cost:
                    other.take_back(cost)
            raise
        finally:
            self._costs = [other for other in self._costs if other is not cost]

    def count_rows(self, output: Tensor) -> None:
        """Count an evaluation by its output."""
        for cost in self._costs:
            cost.forward += len(output)
            cost.backward += len(output) * output.requires_grad

    def count_decodes(self, pictures: int) -> None:
        """Count decoded pictures."""
        for cost in self._costs:
            cost.decodes += pictures


class Schedule(Protocol):
    """One sampling run's private scheduler."""

    timesteps: Tensor
    initial_scale: float

    def scale(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoiser's input for the sampler's state `x`."""
        ...

    def step(self, output: Tensor, t: Tensor, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The sampler's next state."""
        ...


Reach = Literal["down-mid", "all"]
AttentionChange = Callable[[str, Tensor], Tensor]  # from a layer's name and its logits (n, heads, queries, tokens)


class DiffusionModel(Protocol):
    """A text-to-image diffusion model, whatever its family. Latents are (n, c, h, w), also where a family packs them.

    Attributes:
        name: What it was loaded as.
        denoiser: The network.
        guidance: The family's own guidance scale; 1 where guidance is off.
        steps: The family's own number of sampling steps.
        batch: Rows of the denoiser at once, at most; None: as many as a method likes. It shrinks where memory runs out.
    """

    name: str
    denoiser: nn.Module
    guidance: float
    steps: int
    batch: int | None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures it makes, in pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of its weights and of its noise schedule."""
        ...

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts to conditions, as the family's own pipeline encodes them."""
        ...

    def unconditional(self, count: int) -> Condition:
        """What guidance moves away from where nothing else is named: not every family encodes the empty prompt."""
        ...

    def spans(self, prompt: str) -> list[tuple[int, int]]:
        """The characters of the prompt behind each token position; equal ends for begin, end and padding."""
        ...

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """One standard normal latent per generator: independent of batch size and device."""
        ...

    def schedule(self, steps: int) -> Schedule:
        """A private copy of the model's scheduler, set to `steps`."""
        ...

    def timestep(self, u: Tensor) -> Tensor:
        """The family's own timesteps at the noise levels u in (0, 1), (n,): 0 is the picture, 1 is noise."""
        ...

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ at the family's timesteps, a scalar or (n,): (n, 1, 1, 1) each, in float64."""
        ...

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """α(t)·x0 + σ(t)·noise; `t` is (n,)."""
        ...

    def predict(self, x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """Evaluate the denoiser once per row; `t` is a scalar or (n,)."""
        ...

    def guided(self, x: Tensor, t: Tensor, cond: Condition, uncond: Condition, scale: float) -> Guided:
        """Both predictions and their combination, in the family's order, number of calls and formula."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Latents to images (n, 3, H, W) in [0, 1]."""
        ...

    def invert(self, images: Tensor) -> Tensor:
        """Images in [0, 1] to latents."""
        ...

    def text_inputs(self, cond: Condition) -> Tensor:
        """What every layer of `text_projections` reads, (n, tokens, width)."""
        ...

    def text_projections(self, reach: Reach = "all") -> Mapping[str, nn.Linear]:
        """Value projections that read the text alone, by module name, first executed first.

        Raises:
            NotApplicable: The family has none there.
        """
        ...

    def text_stream_values(self, reach: Reach = "all") -> Mapping[str, nn.Linear]:
        """Value projections whose input is text tokens alone, changed by timestep or picture before, by module name.

        Raises:
            NotApplicable: The family has none.
        """
        ...

    def attending(self, change: AttentionChange, reach: Reach = "all") -> AbstractContextManager[None]:
        """Pass the logits of every layer's attention from picture to text through a function, for a block.

        Raises:
            NotApplicable: The family's adapter does not give them.
        """
        ...

    def feed_forwards(self) -> Mapping[str, nn.Linear]:
        """The second linear layer of every feed-forward, by module name, first executed first.

        Raises:
            NotApplicable: The family has none.
        """
        ...

    def attention_layers(self) -> Mapping[str, nn.Linear]:
        """The linear layers of every attention, those of the text's stream included, by module name.

        Raises:
            NotApplicable: The family has none.
        """
        ...

    def counted(self) -> AbstractContextManager[Cost]:
        """The cost of a block."""
        ...

    def save(self, folder: Path) -> None:
        """Write the whole pipeline, with every component that it came with."""
        ...


class TypedModel(DiffusionModel, Protocol):
    """A model whose text encoder can be differentiated down to what each token puts in.

    `vocabulary` is the words that are one token of their own; `token_table` what every token puts in, (tokens, width).
    """

    @property
    def vocabulary(self) -> list[str]:
        """The words that are one token of their own."""
        ...

    @property
    def token_table(self) -> Tensor:
        """What every token puts in, (tokens, width)."""
        ...

    def encode_tokens(self, ids: Tensor, inputs: Tensor) -> Condition:
        """What `encode` gives for the prompt with these ids (n, tokens), with gradients to `inputs` = table[ids]."""
        ...


def typed(model: DiffusionModel) -> TypedModel:
    """The model as one whose text encoder can be differentiated down to its tokens.

    Raises:
        NotApplicable: It cannot.
    """
    if not hasattr(model, "encode_tokens"):
        raise NotApplicable("this model's text encoder gives no token inputs")
    return cast(TypedModel, model)


def drawn_levels(count: int, generator: torch.Generator, *, lowest: float = 0.0, skip: int = 0) -> Tensor:
    """Random noise levels u in (0, 1) above `lowest`, evenly on a grid, the lowest `skip` points left out: (count,).

    The highest is always among them. On the grid of the schedule that ε and v models are trained with, these are its
    own timesteps.
    """
    first = min(max(int(lowest * LEVELS), skip), LEVELS - 1)
    return (torch.randint(first, LEVELS, (count,), generator=generator) + 0.5) / LEVELS
