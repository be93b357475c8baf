"""The training loop: AdamW with a moving average of the weights, in any number of processes, resumed exactly.

Processes (`accelerate launch`, `torchrun`) take equal shares of every batch and average their gradients, so that their
number changes nothing but the speed. Modules are not wrapped: a task may attack a model or combine gradients.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, reduce
from torch import Tensor, nn

from unmemorize.core.devices import device_of
from unmemorize.core.errors import UserError
from unmemorize.unlearn.checkpoints import last_update, load_checkpoint, part, save_checkpoint, write_log

PATIENCE = timedelta(days=7)  # how long processes wait for one that measures, or makes what all need
BUCKET = 2**24  # values exchanged at once: one message a tensor is slow, one for all needs the memory of all
NORM = "grad_norm"  # in the log: the gradient's, before it is cut
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, beside the number of its steps
AVERAGED = 1_000_000_000  # weights, at most, of which there is a moving average


class Team:
    """The processes of a run: which of them this is, and what they exchange."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        own = device_of(device)
        # The default of ten minutes or half an hour would end the job while the first process measures.
        state = PartialState(cpu=own.type == "cpu", timeout=PATIENCE)
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        self.device = own if self.size == 1 else state.device

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of a batch that this process takes.

        Raises:
            UserError: The processes cannot take equal shares.
        """
        if rows % self.size:
            raise UserError(f"{rows} rows cannot be shared by {self.size} processes: start another number of them")
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace every tensor by its mean over processes."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = reduce(torch.cat([tensor.flatten() for tensor in bucket]), "mean")
            for tensor, mean in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def gather(self, part: Tensor) -> Tensor:
        """The parts of all processes one after the other: of their shares, all rows in order."""
        return gather(part) if self.size > 1 else part

    def agree(self, value: Any) -> Any:
        """The value of the first process, in every process."""
        return broadcast_object_list([value])[0] if self.size > 1 else value

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            PartialState().wait_for_everyone()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    values = 0
    for tensor in tensors:
        if bucket and values + tensor.numel() > BUCKET:
            yield bucket
            bucket, values = [], 0
        bucket.append(tensor)
        values += tensor.numel()
    if bucket:
        yield bucket


class Trainable(Protocol):
    """What a loop trains: it leaves gradients in the parameters, and may have a state that goes into checkpoints."""

    @abstractmethod
    def backward(self, update: int) -> dict[str, Tensor] | None:
        """Add the gradients of this process's share of an update to the parameters; return scalars for the log.

        Updates are counted from 0, and everything random is drawn from (seed, update, row) alone. None, in every
        process or in none, is no step: the weights stay, the moving average goes on.
        """

    def after(self, update: int, average: Mapping[str, Tensor]) -> None:
        """Called after each update, with the number of them and the moving average of the weights by name."""
        return

    def is_finished(self) -> bool:
        """Whether training ends before its last update."""
        return False

    def state(self) -> dict[str, Tensor]:
        """What is carried from update to update, the same in every process; asked of all processes at once."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` returned."""
        return


@dataclass(frozen=True)
class Fitted:
    """What a loop leaves behind.

    Attributes:
        updates: Updates made.
        average: The moving average of the weights, by name.
        losses: What `backward` returned, by name, (updates,) each; NaN where there was no step.
        seconds: Those of the first process in updates.
    """

    updates: int
    average: dict[str, Tensor]
    losses: dict[str, Tensor]
    seconds: float


@dataclass(frozen=True)
class Loop:
    """How parameters are trained.

    The moving average starts at the first weights and decays by min(`ema`, n / (n + 9)) at update n, so that the start
    soon counts little. It is held in the CPU's memory; of more than a billion weights there is none, and the weights
    stand for it.

    Attributes:
        folder: Where checkpoints and `loss.jsonl` go; a run that is there is continued.
        updates: Updates to make.
        lr: The learning rate of each update, counted from 0.
        betas: AdamW's.
        weight_decay: AdamW's.
        clip: The norm to which a gradient is cut.
        ema: The decay of the moving average.
        save_every: Updates between two checkpoints.
        decisive: What has to be equal for a run to be continued, in JSON's types.
    """

    folder: Path
    updates: int
    lr: Callable[[int], float]
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.99
    save_every: int = 25
    decisive: Mapping[str, Any] = field(default_factory=dict)

    def run(self, parameters: dict[str, nn.Parameter], trainable: Trainable, team: Team) -> Fitted:
        """Train the parameters in place.

        Checkpoints are continued: killed anywhere and started again, a run ends with the same bytes.

        Raises:
            UserError: A loss is not finite, the disk is full, or the folder holds a run of other settings. The last
                checkpoint is whole.
        """
        run = _Run(self, parameters, trainable, team)
        run.resume()
        while run.update < self.updates and not trainable.is_finished():
            run.step()
            trainable.after(run.update, run.average)
            if run.update % self.save_every == 0 or run.update == self.updates or trainable.is_finished():
                run.save()
        return Fitted(run.update, run.average, run.losses(), run.seconds)


class _Run:
    """A run in progress."""

    def __init__(self, loop: Loop, parameters: dict[str, nn.Parameter], trainable: Trainable, team: Team) -> None:
        self.loop, self.parameters, self.trainable, self.team = loop, parameters, trainable, team
        self.optimizer = torch.optim.AdamW(
            parameters.values(), lr=loop.lr(0), betas=loop.betas, weight_decay=loop.weight_decay
        )
        self.averages = sum(p.numel() for p in parameters.values()) <= AVERAGED
        self.means = {name: p.detach().cpu().clone() for name, p in parameters.items()} if self.averages else {}
        self.update = 0
        self.steps = 0  # fewer than updates where some had no loss
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []

    @property
    def average(self) -> dict[str, Tensor]:
        """The moving average, or the weights themselves where they are too many for one."""
        return self.means if self.averages else {name: p.detach() for name, p in self.parameters.items()}

    def step(self) -> None:
        """Make an update."""
        since = time.perf_counter()
        trained = list(self.parameters.values())
        for p in trained:
            p.grad = torch.zeros_like(p)  # also of parameters that a prediction does not use: all have moments to save
        scalars = self.trainable.backward(self.update)
        self.log.append({} if scalars is None else self._descend(trained, scalars))
        self.optimizer.zero_grad(set_to_none=True)
        self.update += 1
        if self.averages:
            decay = min(self.loop.ema, self.update / (self.update + 9))
            torch._foreach_lerp_(list(self.means.values()), [p.detach().cpu() for p in trained], 1 - decay)
        self.seconds += time.perf_counter() - since

    def _descend(self, trained: list[nn.Parameter], scalars: dict[str, Tensor]) -> dict[str, float]:
        means = {name: value.detach().float().clone() for name, value in scalars.items()}
        gradients = [p.grad for p in trained if p.grad is not None]
        self.team.average([*gradients, *means.values()])
        means[NORM] = nn.utils.clip_grad_norm_(trained, self.loop.clip)
        if not all(torch.isfinite(value) for value in means.values()):
            raise UserError(
                f"update {self.update + 1}: the loss is not finite: lower the learning rate; {self.loop.folder} holds "
                f"the run up to update {last_update(self.loop.folder)}"
            )
        self.optimizer.param_groups[0]["lr"] = self.loop.lr(self.update)
        self.optimizer.step()
        self.steps += 1
        return {name: value.item() for name, value in means.items()}

    def losses(self) -> dict[str, Tensor]:
        """The log's columns, without the gradient's norm."""
        names: dict[str, None] = {}
        for row in self.log:
            names |= dict.fromkeys(row)
        names.pop(NORM, None)
        columns: dict[str, Tensor] = {}
        for name in names:
            values = [row.get(name, float("nan")) for row in self.log]
            columns[name] = torch.tensor(values, dtype=torch.float64)
        return columns

    def save(self) -> None:
        """Write a checkpoint, and the log as it is then."""
        state = self.trainable.state()
        if self.team.first:
            record = {"decisive": dict(self.loop.decisive), "update": self.update, "steps": self.steps}
            record |= {"seconds": self.seconds, "log": self.log}
            tensors = {f"state/{name}": value for name, value in state.items()}
            for name, p in self.parameters.items():
                moments = self.optimizer.state[p]
                tensors |= {f"weight/{name}": p.detach()}
                tensors |= {f"{key}/{name}": moments.get(key, torch.zeros_like(p)) for key in MOMENTS}
            tensors |= {f"ema/{name}": mean for name, mean in self.means.items()}
            save_checkpoint(self.loop.folder, self.update, record, tensors)
            write_log(self.loop.folder, self.log)
        self.team.wait()

    def resume(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        checkpoint = load_checkpoint(self.loop.folder)
        if checkpoint is None:
            return
        record, tensors = checkpoint
        if record.get("decisive") != self.loop.decisive:
            raise UserError(f"{self.loop.folder}: holds a run with other settings: name another folder")
        self.update, self.steps, self.seconds = record["update"], record["steps"], record["seconds"]
        self.log = record["log"]
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"weight/{name}"])
                if self.averages:
                    self.means[name].copy_(tensors[f"ema/{name}"])
                moments = {key: torch.empty_like(p).copy_(tensors[f"{key}/{name}"]) for key in MOMENTS}
                self.optimizer.state[p] = {"step": torch.tensor(float(self.steps)), **moments}
        self.trainable.load_state(part(tensors, "state/"))
