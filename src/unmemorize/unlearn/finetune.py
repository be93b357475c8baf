"""The fine-tuning loop: any objective, one process or several, killed and resumed without a trace.

Processes (`accelerate launch`) take equal shares of every update's rows and average their gradients, so that their
number changes nothing but the speed. The model is not wrapped: objectives attack it and combine gradients as they
like.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, reduce
from torch import Tensor, nn

from unmemorize.core.errors import MissingExtra, NotApplicable, UserError
from unmemorize.core.hooks import checkpointed, replaced
from unmemorize.core.methods import Subject, Training, Unlearner
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Pairs, Trained
from unmemorize.core.run import Progress, quiet
from unmemorize.unlearn.checkpoints import last_update, load_checkpoint, save_checkpoint

PATIENCE = timedelta(days=7)  # how long processes wait for one that measures, or makes what all need
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # where LoRA adds its matrices


@dataclass(frozen=True)
class Finetune:
    """Settings of the loop.

    With `settling` the learning rate falls linearly to zero, and over that many last updates once more, from half.
    `ema` is the decay of the moving average that is exported; attacks in the loop see the raw weights. `lora` is the
    rank of adapters in the attention layers, merged in the end; None trains all weights. A check is made every
    `check_every` updates; `patience` of them in a row that find nothing end the run, unless it settles.
    `gradient_checkpointing` trades memory of large models for time.
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
        """The learning rate after so many updates."""
        first = self.updates - self.settling
        if not self.settling:
            return self.lr
        if update < first:
            return self.lr * (1 - update / first)
        return self.lr / 2 * (1 - (update - first) / self.settling)


class Team:
    """The processes of a run: which of them this is, and what they exchange."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # The default of ten minutes or half an hour would end the job while the first process measures.
        state = PartialState(cpu=torch.device(device).type == "cpu", timeout=PATIENCE)
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        self.device = torch.device(device) if self.size == 1 else state.device

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of an update that this process takes.

        Raises:
            UserError: The processes cannot take equal shares.
        """
        if rows % self.size:
            raise UserError(f"{rows} rows cannot be shared by {self.size} processes: start another number of them")
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its mean over processes."""
        if self.size > 1:
            for tensor in tensors:
                tensor.copy_(reduce(tensor, "mean"))

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all processes one after the other: of their shares, all rows in order."""
        return gather(part) if self.size > 1 else part

    def agree(self, value: Any) -> Any:
        """The first process's value."""
        return broadcast_object_list([value])[0] if self.size > 1 else value

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            PartialState().wait_for_everyone()


class Objective(Protocol):
    """What is minimised. Its state is whatever it carries from one update to the next."""

    def backward(self, model: DiffusionModel, update: int, team: Team) -> dict[str, Tensor]:
        """Leave the gradient of this process's share of the rows in the parameters; return scalars to show.

        Rows and noise are drawn from (seed, update, row) alone. The loop averages gradients over processes; what needs
        the average earlier takes it by itself, which changes nothing then.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """All it carries, the same in every process."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        ...


class Stateless:
    """An objective that carries nothing from update to update."""

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Finetuning(Unlearner):
    """An unlearner that minimises an objective in the loop of this file.

    Attributes:
        updates: Updates of the model.
        lr: Learning rate; by default that of the method.
        lora: Rank of LoRA adapters; 0 trains all weights.
        seed: Seed of training.
        check_every: Updates between two checks; 0 for none.
        low_memory: Compute in bf16 and keep no activations.
    """

    usual_lr: ClassVar[float] = 1e-5

    updates: int = 200
    lr: float = 0.0
    lora: int = 0
    seed: int = 0
    check_every: int = 0
    low_memory: bool = False

    def __post_init__(self) -> None:
        if self.updates < 1 or self.lr < 0 or self.lora < 0:
            raise ValueError("updates has to be above 0, lr and lora not below it")

    @property
    def loop(self) -> Finetune:
        """The loop's settings."""
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
            self.loop,
            training.folder,
            progress=training.progress,
            check=training.check if self.check_every else None,
        )


def finetune(
    model: DiffusionModel,
    objective: Objective,
    how: Finetune,
    folder: Path,
    *,
    progress: Progress = quiet,
    check: Callable[[int], float] | None = None,
    team: Team | None = None,
) -> Trained:
    """Train the denoiser in place with AdamW; it ends with the moving average of its weights.

    Checkpoints in `folder` are continued: killed anywhere and started again, a run ends with the same weights.

    Args:
        model: The model, in float32.
        objective: What to minimise.
        how: Settings. A run that is there already may be given more updates, unless the learning rate falls, and
            nothing else.
        folder: Where checkpoints go.
        progress: Shows updates, and the last check's rate in percent.
        check: The share of attacks that succeed on the model, whose weights are the averaged ones for the length of the
            call; made by the first process alone.
        team: The processes; those that `accelerate launch` started, by default.

    Raises:
        UserError: The loss is not finite, the disk is full, or the folder holds another run. The last checkpoint is
            whole.
        MissingExtra: LoRA is asked for and peft is not installed.
        NotApplicable: LoRA is asked for and the network takes none.
    """
    team = team or Team(next(model.denoiser.parameters()).device)
    with checkpointed(model.denoiser, how.gradient_checkpointing), _trainable(model.denoiser, how) as parameters:
        run = _Run(parameters, how, folder, team)
        run.resume(objective)
        while run.update < how.updates and not run.clean():
            since = time.perf_counter()
            with model.counted() as cost:
                run.step(model, objective)
            run.evaluations += cost.forward
            run.seconds += time.perf_counter() - since
            progress("updates", run.update, how.updates)
            if check is not None and run.update % how.check_every == 0:
                rate = run.check(model, check)
                progress("attacked%", round(100 * rate), 100)
            if run.update % how.save_every == 0 or run.update == how.updates or run.clean():
                run.save(objective)
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(run.average[name])
    return run.result()


@dataclass
class _Run:
    """A run in progress."""

    parameters: dict[str, nn.Parameter]
    how: Finetune
    folder: Path
    team: Team
    update: int = 0
    evaluations: int = 0
    checking: int = 0
    seconds: float = 0.0
    checks: list[tuple[int, float]] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trained = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(trained, lr=self.how.lr, weight_decay=self.how.weight_decay)
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    def clean(self) -> bool:
        """Whether the last checks found nothing; a run that settles goes on, for it has to."""
        last = self.checks[-self.how.patience :]
        return not self.how.settling and len(last) == self.how.patience and all(rate == 0 for _, rate in last)

    def step(self, model: DiffusionModel, objective: Objective) -> None:
        trained = list(self.parameters.values())
        for p in trained:
            p.grad = torch.zeros_like(p)
        with torch.autocast(trained[0].device.type, torch.bfloat16, enabled=self.how.precision == "bf16"):
            shown = objective.backward(model, self.update, self.team)
        shown = {name: value.detach().float().clone() for name, value in shown.items()}
        gradients = [p.grad for p in trained if p.grad is not None]
        self.team.average([*gradients, *shown.values()])
        norm = nn.utils.clip_grad_norm_(trained, self.how.clip)
        if not all(torch.isfinite(v) for v in (norm, *shown.values())):
            raise UserError(
                f"update {self.update + 1}: the loss is not finite: lower --lr; {self.folder} holds the run up to "
                f"update {last_update(self.folder)}"
            )
        self.optimizer.param_groups[0]["lr"] = self.how.rate(self.update)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.update += 1
        decay = min(self.how.ema, self.update / (self.update + 9))  # early on, the start should not weigh as much
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in trained], 1 - decay)
        for name, value in shown.items():
            self.losses.setdefault(name, []).append(value.item())

    def check(self, model: DiffusionModel, check: Callable[[int], float]) -> float:
        own = 0.0
        if self.team.first:
            averaged = {name: self.average[name] for name in self.parameters}
            with model.counted() as cost, replaced(model.denoiser, averaged):
                own = check(self.update)
            self.checking += cost.forward
        rate: float = self.team.agree(own)
        self.checks.append((self.update, rate))
        return rate

    def save(self, objective: Objective) -> None:
        spent = self._spent()
        if self.team.first:
            record = {"update": self.update, "checks": self.checks, "settings": _settings(self.how)} | spent
            tensors = {f"objective/{name}": value for name, value in objective.state().items()}
            tensors |= {f"loss/{name}": torch.tensor(v, dtype=torch.float64) for name, v in self.losses.items()}
            for name, p in self.parameters.items():
                moments = self.optimizer.state[p]
                tensors |= {f"weight/{name}": p.detach(), f"ema/{name}": self.average[name]}
                tensors |= {f"{key}/{name}": moments[key] for key in _MOMENTS}
            save_checkpoint(self.folder, self.update, record, tensors)
        self.team.wait()

    def resume(self, objective: Objective) -> None:
        """Take up the newest checkpoint."""
        found = load_checkpoint(self.folder)
        if found is None:
            return
        if found[0]["settings"] != _settings(self.how):
            raise UserError(f"{self.folder}: holds a run with other settings: name another folder")
        self._take(*found)
        objective.load_state(_part(found[1], "objective/"))

    def _take(self, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.update, self.checks = record["update"], [(u, r) for u, r in record["checks"]]
        self.seconds = record["seconds"]
        if self.team.first:  # what was spent is summed over processes
            self.evaluations, self.checking = record["evaluations"], record["checking"]
        self.losses = {name: values.tolist() for name, values in _part(tensors, "loss/").items()}
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"weight/{name}"])
                self.average[name].copy_(tensors[f"ema/{name}"])
                moments = {key: torch.empty_like(p).copy_(tensors[f"{key}/{name}"]) for key in _MOMENTS}
                self.optimizer.state[p] = {"step": torch.tensor(float(self.update)), **moments}

    def _spent(self) -> dict[str, Any]:
        counts = torch.tensor([self.evaluations, self.checking], device=self.team.device)
        evaluations, checking = self.team.gather(counts).reshape(-1, 2).sum(0).tolist()
        return {"evaluations": evaluations, "checking": checking, "seconds": self.seconds}

    def result(self) -> Trained:
        losses = {name: torch.tensor(values, dtype=torch.float64) for name, values in self.losses.items()}
        return Trained(self.update, tuple(self.checks), losses, **self._spent())


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _settings(how: Finetune) -> dict[str, Any]:
    """What two parts of one run have in common."""
    free = {"save_every"} if how.settling else {"save_every", "updates"}
    return {name: value for name, value in asdict(how).items() if name not in free}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextmanager
def _trainable(denoiser: nn.Module, how: Finetune) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters to train: all, or those of LoRA adapters, which are merged at the end and gone after an error."""
    flags = {p: p.requires_grad for p in denoiser.parameters()}
    denoiser.requires_grad_(how.lora is None)
    try:
        if how.lora is None:
            yield dict(denoiser.named_parameters())
            return
        network: Any = denoiser  # diffusers' networks take adapters
        _add_lora(network, how.lora, how.seed)
        try:
            yield {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
            network.fuse_lora()
        finally:
            network.unload_lora()
    finally:
        for p, flag in flags.items():
            p.grad = None
            p.requires_grad_(flag)


def _add_lora(network: Any, rank: int, seed: int) -> None:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingExtra("LoRA", "train") from error
    if not hasattr(network, "add_adapter"):
        raise NotApplicable(f"diffusers puts no LoRA on a {type(network).__name__}: train all weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # From the second matrix at zero: the first update starts from the very model.
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ATTENTION)))


def gradients(loss: Tensor, parameters: Sequence[nn.Parameter], team: Team, *, again: bool = False) -> list[Tensor]:
    """The gradient of a loss, averaged over processes; `again` if another one of the same graph is wanted after it."""
    # Zeros for parameters that a prediction does not use, such as those of the last text layer of some transformers.
    found = torch.autograd.grad(loss, parameters, retain_graph=again, materialize_grads=True)
    result = [g.clone() for g in found]
    team.average(result)
    return result


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of tensors taken as one vector, in float32."""
    norm: Tensor = torch.stack([t.float().norm() for t in tensors]).norm()
    return norm
