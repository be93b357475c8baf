"""Unlearners that minimise an objective: the denoiser or LoRA adapters, with checks by attack during training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from unmemorize.core.bounds import Count, Limit, Rank, Scale, Seed
from unmemorize.core.errors import MissingExtra, NotApplicable
from unmemorize.core.hooks import checkpointed, replaced
from unmemorize.core.methods import Subject, Training, Unlearner
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Pairs, Trained
from unmemorize.core.run import Progress, quiet
from unmemorize.unlearn.checkpoints import part
from unmemorize.unlearn.loop import Loop, Team, Trainable


@dataclass(frozen=True)
class Finetune:
    """Settings of fine-tuning.

    Attributes:
        updates: Updates to make.
        lr: The learning rate at the first update.
        settling: If above 0, the learning rate falls linearly to zero before the last `settling` updates, then starts
            again from half of `lr` and falls to zero over these.
        weight_decay: AdamW's.
        clip: The norm to which a gradient is cut.
        ema: The decay of the moving average of the weights, which is what is exported.
        seed: Seed of all that is random.
        save_every: Updates between two checkpoints.
        check_every: Updates between two checks by attack.
        patience: So many checks in a row without a copy end the run, unless it settles.
        lora: Rank of adapters in the attention layers, merged at the end; None trains all weights.
        precision: What predictions are computed in; the weights stay in float32.
        gradient_checkpointing: Keep fewer activations and compute them again: less memory, more time.
    """

    updates: int = 200
    lr: float = 1e-5
    settling: int = 0
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.99
    seed: int = 0
    save_every: int = 25
    check_every: int = 25
    patience: int = 2
    lora: int | None = None
    precision: Literal["float32", "bf16"] = "float32"
    gradient_checkpointing: bool = False

    def rate(self, update: int) -> float:
        """The learning rate of an update, counted from 0."""
        first = self.updates - self.settling
        if not self.settling:
            return self.lr
        if update < first:
            return self.lr * (1 - update / first)
        return self.lr / 2 * (1 - (update - first) / self.settling)

    def loop(self, folder: Path) -> Loop:
        """The training loop; more updates may be asked for later, unless the learning rate depends on their number."""
        free = {"save_every"} if self.settling else {"save_every", "updates"}
        return Loop(
            folder,
            self.updates,
            self.rate,
            weight_decay=self.weight_decay,
            clip=self.clip,
            ema=self.ema,
            save_every=self.save_every,
            decisive={name: value for name, value in asdict(self).items() if name not in free},
        )


class Objective(Protocol):
    """What is minimised. Its state is whatever it carries from one update to the next."""

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """Leave the gradient of this process's share of the rows in the parameters; return scalars to show.

        Rows and noise are drawn from (seed, update, row) alone. The loop averages gradients over processes; what needs
        the average earlier takes it by itself, which changes nothing then.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """All that the objective carries from update to update, the same in every process."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        ...


class Stateless:
    """An objective that carries nothing from update to update."""

    def state(self) -> dict[str, Tensor]:
        """No tensors."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing to take up."""


@dataclass(frozen=True)
class Finetuning(Unlearner):
    """An unlearner that minimises an objective in the training loop.

    Attributes:
        updates: Updates of the model.
        lr: Learning rate; by default that of the method.
        lora: Rank of LoRA adapters; 0 trains all weights.
        seed: Seed of training.
        check_every: Updates between two checks; 0 for none.
        low_memory: Compute in bf16 and keep no activations.
    """

    usual_lr: ClassVar[float] = 1e-5

    updates: Count = 200
    lr: Scale = 0.0
    lora: Rank = 0
    seed: Seed = 0
    check_every: Limit = 0
    low_memory: bool = False

    def __post_init__(self) -> None:
        if self.updates < 1 or self.lr < 0 or self.lora < 0:
            raise ValueError("updates has to be above 0, lr and lora not below it")

    @property
    def finetune(self) -> Finetune:
        """The settings of fine-tuning."""
        return Finetune(
            updates=self.updates,
            lr=self.lr or self.usual_lr,
            seed=self.seed,
            check_every=self.check_every or self.updates + 1,
            lora=self.lora or None,
            precision="bf16" if self.low_memory else "float32",
            gradient_checkpointing=self.low_memory,
        )

    @abstractmethod
    def objective(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Objective:
        """What is minimised."""

    def train(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Trained:
        """Minimise the objective, from the last checkpoint on where there is one."""
        objective = self.objective(subject, forget, keep, training)
        return finetune(
            subject.model,
            objective,
            self.finetune,
            training.folder,
            progress=training.progress,
            check=training.check if self.check_every else None,
        )


def finetune(
    model: DiffusionModel,
    objective: Objective,
    settings: Finetune,
    folder: Path,
    *,
    progress: Progress = quiet,
    check: Callable[[int], float] | None = None,
) -> Trained:
    """Train the denoiser in place with AdamW; it ends with the moving average of its weights.

    Checkpoints in `folder` are continued: killed anywhere and started again, a run ends with the same weights.

    Args:
        model: The model, in float32.
        objective: What to minimise.
        settings: Settings. A run that is there already may be given more updates, unless the learning rate falls, and
            nothing else.
        folder: Where checkpoints go.
        progress: Shows updates, and the last check's rate in percent.
        check: The share of attacks that succeed on the model, whose weights are the averaged ones for the length of the
            call; made by the first process alone.

    Raises:
        UserError: The loss is not finite, the disk is full, or the folder holds another run. The last checkpoint is
            whole.
        MissingExtra: LoRA is asked for and peft is not installed.
        NotApplicable: LoRA is asked for and the network takes none.
    """
    team = Team(next(model.denoiser.parameters()).device)
    trainable = _Finetuned(model, objective, settings, team, progress, check)
    activations = checkpointed(model.denoiser, settings.gradient_checkpointing)
    with activations, _trained_parameters(model, settings) as parameters:
        fitted = settings.loop(folder).run(parameters, trainable, team)
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(fitted.average[name])
    evaluations, checking = trainable.cost().tolist()
    return Trained(fitted.updates, tuple(trainable.checks), fitted.losses, evaluations, checking, fitted.seconds)


@dataclass
class _Finetuned(Trainable):
    """An objective on a model, and the checks."""

    model: DiffusionModel
    objective: Objective
    settings: Finetune
    team: Team
    progress: Progress
    check: Callable[[int], float] | None
    evaluations: int = 0
    checking: int = 0
    checks: list[tuple[int, float]] = field(default_factory=list)

    def backward(self, update: int) -> dict[str, Tensor]:
        device, reduced = self.team.device.type, self.settings.precision == "bf16"
        with self.model.counted() as cost, torch.autocast(device, torch.bfloat16, enabled=reduced):
            losses = self.objective.backward(self.model, update, self.team)
        self.evaluations += cost.forward
        return losses

    def after(self, update: int, average: Mapping[str, Tensor]) -> None:
        self.progress("updates", update, self.settings.updates)
        if self.check is None or update % self.settings.check_every:
            return
        rate = 0.0
        if self.team.first:
            with self.model.counted() as cost, replaced(self.model.denoiser, average):
                rate = self.check(update)
            self.checking += cost.forward
        rate = self.team.agree(rate)
        self.checks.append((update, rate))
        self.progress("attacked%", round(100 * rate), 100)

    def is_finished(self) -> bool:
        """Whether the last checks found nothing; a run that settles goes on, for it has to."""
        last = self.checks[-self.settings.patience :]
        return not self.settings.settling and len(last) == self.settings.patience and all(rate == 0 for _, rate in last)

    def cost(self) -> Tensor:
        """Evaluations by the objective and by checks, over all processes."""
        own = torch.tensor([[self.evaluations, self.checking]], device=self.team.device)
        return self.team.gather(own).sum(0)

    def state(self) -> dict[str, Tensor]:
        objective = {f"objective/{name}": value for name, value in self.objective.state().items()}
        return objective | {"cost": self.cost(), "checks": torch.tensor(self.checks, dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self.team.first:  # what was spent is summed over processes
            self.evaluations, self.checking = state["cost"].tolist()
        self.checks = [(int(update), rate) for update, rate in state["checks"].tolist()]
        self.objective.load_state(part(state, "objective/"))


@contextmanager
def _trained_parameters(model: DiffusionModel, settings: Finetune) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters to train: all, or those of LoRA adapters, which are merged at the end and gone after an error."""
    denoiser = model.denoiser
    if any(not p.dtype.is_floating_point or p.dtype.itemsize == 1 for p in denoiser.parameters()):
        raise NotApplicable("quantized weights are not trained: load the model in float32")
    if any(getattr(module, "fused_projections", False) for module in denoiser.modules()):
        raise NotApplicable("what fused projections learn is lost: call pipe.unfuse_qkv_projections() first")
    flags = {p: p.requires_grad for p in denoiser.parameters()}
    denoiser.requires_grad_(settings.lora is None)
    try:
        if settings.lora is None:
            yield dict(denoiser.named_parameters())
            return
        network: Any = denoiser  # diffusers' networks take adapters
        _add_lora(network, list(model.attention_layers()), settings.lora, settings.seed)
        try:
            yield {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
            network.fuse_lora()
        finally:
            network.unload_lora()
    finally:
        for p, flag in flags.items():
            p.grad = None
            p.requires_grad_(flag)


def _add_lora(network: Any, layers: list[str], rank: int, seed: int) -> None:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtra("LoRA", "train") from error
    if not hasattr(network, "add_adapter"):
        raise NotApplicable(f"diffusers puts no LoRA on a {type(network).__name__}: train all weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The second matrix starts at zero, so that training starts from the very model.
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))


@contextmanager
def without_adapters(denoiser: nn.Module) -> Iterator[None]:
    """Compute as if the adapters that are trained were not there."""
    network: Any = denoiser  # diffusers' networks take adapters
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter], team: Team, *, again: bool = False) -> list[Tensor]:
    """The gradient of a loss, averaged over processes; `again` if another one of the same graph is wanted after it."""
    # Zeros for parameters that a prediction does not use, such as those of the last text layer of some transformers.
    grads = torch.autograd.grad(loss, parameters, retain_graph=again, materialize_grads=True)
    means = [grad.clone() for grad in grads]
    team.average(means)
    return means


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of tensors taken as one vector, in float32."""
    norm: Tensor = torch.stack([t.float().norm() for t in tensors]).norm()
    return norm
