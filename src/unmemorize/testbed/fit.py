"""The training loop: AdamW, a moving average, checkpoints that resume exactly, and any number of processes.

Under `torchrun` every process takes its share of each batch and gradients are averaged: two processes of one thread
train a small model nearly twice as fast as one process of two threads.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from unmemorize.core.errors import UserError
from unmemorize.core.run import atomic

Loss = Callable[[int], Tensor | None]


def fit(
    modules: nn.ModuleDict,
    loss: Loss,
    *,
    steps: int,
    lr: Callable[[int], float],
    folder: Path,
    ema: float = 0.999,
    save_every: int = 100,
) -> dict[str, Tensor]:
    """Minimise `loss(step)` over the modules' parameters with AdamW; returns their exponential moving average.

    A loss of None is no step: the weights stay, the step counter and the average go on. Resumes from
    `folder/state.safetensors` and appends to `folder/loss.jsonl`.
    """
    parameters = dict(modules.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr(0), betas=(0.9, 0.99), weight_decay=1e-2)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    start = _restore(folder / "state.safetensors", parameters, optimizer, average)
    modules.train()
    bar = tqdm(range(start, steps), folder.name, steps, initial=start, mininterval=5, disable=not is_first())
    with _log(folder / "loss.jsonl", start) as log:
        for step in bar:
            optimizer.param_groups[0]["lr"] = lr(step)
            value = loss(step)
            norm = 0.0 if value is None else _step(optimizer, value)
            decay = min(ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
            if step % 20 == 0:
                log.write(
                    json.dumps({"step": step, "loss": None if value is None else value.item(), "grad_norm": norm})
                    + "\n"
                )
            if is_first() and ((step + 1) % save_every == 0 or step + 1 == steps):
                log.flush()
                _save(folder / "state.safetensors", step + 1, parameters, optimizer, average)
    modules.eval()
    wait_for_all()
    return average


def _step(optimizer: torch.optim.Optimizer, value: Tensor) -> float:
    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return norm.item()


def processes() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this process writes files."""
    return processes()[0] == 0


def share(batch: int) -> slice:
    """The rows of a batch that this process takes.

    Raises:
        UserError: The processes cannot take equal shares.
    """
    rank, world = processes()
    if batch % world:
        raise UserError(f"a batch of {batch} cannot be shared by {world} processes: start another number of them")
    return slice(rank, batch, world)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over processes, whose shares of the batch must be of one size."""
    if dist.is_initialized():
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _save(
    path: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> None:
    tensors: dict[str, Tensor] = {}
    updates = 0  # fewer than steps where some had no loss
    for name, p in parameters.items():
        moments = optimizer.state[p]
        updates = int(moments.get("step", 0))
        tensors |= {f"weight/{name}": p.detach(), f"ema/{name}": average[name]}
        tensors |= {f"{key}/{name}": moments.get(key, torch.zeros_like(p)) for key in ("exp_avg", "exp_avg_sq")}
    with atomic(path) as temporary:
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": str(step), "updates": str(updates)}
        )


def _restore(
    path: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> int:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return 0
    with safe_open(path, "pt") as file:
        counts = file.metadata()
    step = int(counts["step"])
    updates = float(counts.get("updates", step))
    state = load_file(path)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state[f"weight/{name}"])
            average[name].copy_(state[f"ema/{name}"])
            optimizer.state[p] = {
                "step": torch.tensor(updates),
                "exp_avg": torch.empty_like(p).copy_(state[f"exp_avg/{name}"]),
                "exp_avg_sq": torch.empty_like(p).copy_(state[f"exp_avg_sq/{name}"]),
            }
    return step


def _log(path: Path, start: int) -> TextIO:
    if not is_first():
        return Path(os.devnull).open("w", encoding="utf-8")
    kept = []
    if path.exists():
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] < start]
    with atomic(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    return path.open("a")


def one_cycle(peak: float, steps: int) -> Callable[[int], float]:
    """A learning rate that rises over the first tenth and falls as a cosine."""
    rise = max(steps // 10, 1)

    def lr(step: int) -> float:
        if step < rise:
            return peak * (step + 1) / rise
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise))))

    return lr
