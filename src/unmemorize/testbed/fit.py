"""Training of the testbed's modules in the training loop of the unlearners."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from unmemorize.unlearn.checkpoints import last_update
from unmemorize.unlearn.loop import Loop, Team, Trainable

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

    A loss is the mean over this process's share of the batch; None, in every process or in none, is no step. Goes on
    from the checkpoints in `folder`, where `loss.jsonl` shows losses.
    """
    parameters = dict(modules.named_parameters())
    team = Team(next(iter(parameters.values())).device)
    loop = Loop(folder, steps, lr, betas=(0.9, 0.99), ema=ema, save_every=save_every)
    modules.train()
    start = last_update(folder)
    with tqdm(desc=folder.name, total=steps, initial=start, mininterval=5, disable=not team.first) as bar:
        average = loop.run(parameters, _Minimised(loss, bar.update), team).average
    modules.eval()
    return average


@dataclass(frozen=True)
class _Minimised(Trainable):
    loss: Loss
    done: Callable[[], object]

    def backward(self, update: int) -> dict[str, Tensor] | None:
        value = self.loss(update)
        if value is None:
            return None
        value.backward()
        return {"loss": value}

    def after(self, update: int, average: Mapping[str, Tensor]) -> None:
        self.done()


def rise_and_fall(peak: float, steps: int, *, warmup: int = 0, decay: int = 0) -> Callable[[int], float]:
    """A learning rate that rises over `warmup` steps and falls over the last `decay`, to a fiftieth of its peak."""

    def lr(step: int) -> float:
        rising = (step + 1) / warmup if warmup else 1.0
        falling = max((steps - step) / decay, 0.02) if decay else 1.0
        return peak * min(rising, falling, 1.0)

    return lr


def one_cycle(peak: float, steps: int) -> Callable[[int], float]:
    """A learning rate that rises over the first tenth and falls as a cosine."""
    rise = max(steps // 10, 1)

    def lr(step: int) -> float:
        if step < rise:
            return peak * (step + 1) / rise
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise))))

    return lr
