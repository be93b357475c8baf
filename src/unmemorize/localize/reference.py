"""What is usual for ordinary prompts: activations of value channels, and how alike noise differences are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unmemorize.core.batches import in_batches
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.model import Condition, DiffusionModel, Reach
from unmemorize.core.run import Progress, atomic, digest, quiet
from unmemorize.core.sample import generators
from unmemorize.metrics.ssim import pairwise_ssim, scaled, scales_for

SEEDS = tuple(range(10))
Activations = Callable[[DiffusionModel, Condition], dict[str, Tensor]]


@dataclass(frozen=True)
class Reference:
    """Mean and standard deviation of every value channel over ordinary prompts, by module name, (width,) each.

    `threshold` is the calibrated one, `prompts` how many there were, `evaluations` what calibration cost.
    """

    mean: Mapping[str, Tensor]
    std: Mapping[str, Tensor]
    threshold: float
    prompts: int
    evaluations: int


@dataclass(frozen=True)
class Start:
    """The first sampling step at some seeds: noise and state (seeds, c, h, w), timestep."""

    noise: Tensor
    x: Tensor
    t: Tensor

    @classmethod
    def of(cls, model: DiffusionModel, seeds: Sequence[int], steps: int = 50) -> Start:
        """The first of `steps` sampling steps."""
        schedule, noise = model.schedule(steps), model.noise(generators(seeds))
        t = schedule.timesteps[0]
        return cls(noise, schedule.scale(noise * schedule.initial_scale, t), t)

    def differences(self, model: DiffusionModel, cond: Condition, seeds: Tensor) -> Tensor:
        """ε(x, t, e) − noise, each channel of each row scaled to [0, 1]: (n, c, h, w) in float32.

        `seeds` (n,) says which seed each row of `cond` starts from. Guidance is off.

        Paper: NeMo (2024), noise differences.
        Differs: at the first sampling step; the reference code is at the second one's timestep, with the first one's x.
        A model that predicts something else than ε gives −x̂0, which is the same up to scale and finite where α = 0.

        Raises:
            UserError: The model predicts NaN.
        """
        with torch.no_grad():
            prediction = model.predict(self.x[seeds], self.t, cond)
        if prediction.kind == "epsilon":
            difference = prediction.eps.float() - self.noise[seeds].float()
        else:
            difference = -prediction.x0.float()
        if not difference.isfinite().all():
            raise UserError("the model predicts NaN or infinite noise: name a sound checkpoint, or another precision")
        return scaled(difference)

    def unblocked(self, model: DiffusionModel, cond: Condition) -> Tensor:
        """Differences of every prompt at every seed: (prompts, seeds, c, h, w)."""
        count = len(self.x)
        rows = torch.arange(len(cond) * count, device=self.x.device)
        differences = self.differences(model, cond[rows // count], rows % count)
        return differences.reshape(len(cond), count, *differences.shape[1:])


def activations(model: DiffusionModel, cond: Condition, reach: Reach = "all") -> dict[str, Tensor]:
    """Mean of |value| over all tokens, padding included, of every channel: (prompts, width) by module name.

    Raises:
        NotApplicable: The model has no value projections that read the text alone.
    """
    with torch.no_grad():
        inputs = model.text_inputs(cond)
        layers = model.text_projections(reach)
        # Weights may wait on the CPU while no part of the network computes.
        return {n: layer(inputs.to(layer.weight.device)).abs().float().mean(1) for n, layer in layers.items()}


def check_finite(denoiser: nn.Module) -> None:
    """Refuse NaN and infinite weights: every comparison with them would be silently false.

    Raises:
        NotApplicable: Weights are quantized or offloaded, and cannot be looked at.
        UserError: There are some.
    """
    for name, parameter in denoiser.named_parameters():
        is_plain = parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1
        if parameter.is_meta or not is_plain:
            raise NotApplicable(f"{name} has quantized or offloaded weights: load the model in half precision or more")
        if not parameter.isfinite().all():
            raise UserError(f"the model has NaN or infinite weights in {name}: name a sound checkpoint")


def reference(
    model: DiffusionModel,
    ordinary: Condition,
    *,
    seeds: Sequence[int] = SEEDS,
    batch: int = 64,
    progress: Progress = quiet,
    measure: Activations = activations,
) -> Reference:
    """Measure the channels of all layers on ordinary prompts, and calibrate the threshold.

    Raises:
        NotApplicable: The model has no such layers.
        UserError: There are fewer than two prompts, or the model's weights are not finite.
    """
    if len(ordinary) < 2:
        raise UserError("statistics of ordinary prompts need two prompts at the least: name a file of more")
    check_finite(model.denoiser)
    with model.counted() as cost:
        parts = [measure(model, ordinary[i : i + batch]) for i in range(0, len(ordinary), batch)]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        threshold = calibrate(model, ordinary, seeds=seeds, batch=batch, progress=progress)
    return Reference(
        mean={name: values.mean(0) for name, values in joined.items()},
        std={name: values.std(0) for name, values in joined.items()},
        threshold=threshold,
        prompts=len(ordinary),
        evaluations=cost.forward,
    )


def calibrate(
    model: DiffusionModel,
    ordinary: Condition,
    *,
    seeds: Sequence[int] = SEEDS,
    batch: int = 64,
    progress: Progress = quiet,
) -> float:
    """The similarity above which seeds are unusually alike: mean + 1 standard deviation over ordinary prompts' pairs.

    Paper: NeMo (2024), threshold of the memorization strength: 0.428 for Stable Diffusion 1.4.
    Differs: without guidance, as in the search that it is used for.
    """
    start = Start.of(model, seeds)
    similarities = []
    scales = scales_for(*start.x.shape[-2:])
    first, second = torch.triu_indices(len(seeds), len(seeds), 1)

    def unblocked(part: slice) -> Tensor:
        return start.unblocked(model, ordinary[part])

    size = max(batch // len(seeds), 1)
    for part, differences in in_batches(model, len(ordinary), unblocked, size=size, rows=len(seeds)):
        similarities += [pairwise_ssim(images, scales)[first, second] for images in differences]
        progress("calibrate", part.stop, len(ordinary))
    values = torch.cat(similarities).double()
    return float(values.mean() + values.std())


def save_reference(path: Path, statistics: Reference, key: str) -> None:
    """Write safetensors that `load_reference` reads back under the same key."""
    tensors = {}
    for name in statistics.mean:
        tensors[f"mean/{name}"] = statistics.mean[name].cpu().contiguous()
        tensors[f"std/{name}"] = statistics.std[name].cpu().contiguous()
    facts = {"key": key, "threshold": statistics.threshold}
    facts |= {"prompts": statistics.prompts, "evaluations": statistics.evaluations}
    with atomic(path) as temporary:  # one entry: safetensors writes several in an order of chance
        save_file(tensors, temporary, {"reference": json.dumps(facts)})


def load_reference(path: Path, key: str) -> Reference | None:
    """What `save_reference` wrote, or None where there is nothing usable: it can be measured again."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["reference"])
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        mean = {name.removeprefix("mean/"): t for name, t in tensors.items() if name.startswith("mean/")}
        std = {name.removeprefix("std/"): t for name, t in tensors.items() if name.startswith("std/")}
        if facts.pop("key") != key or mean.keys() != std.keys():
            return None
        return Reference(mean, std, **facts)
    except (OSError, SafetensorError, TypeError, KeyError, ValueError):
        return None


def cache_folder() -> Path:
    """Where statistics are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unmemorize"


def cached_reference(
    model: DiffusionModel,
    ordinary: Condition,
    folder: Path,
    progress: Progress = quiet,
    measure: Activations = activations,
    name: str = "nemo",
) -> Reference:
    """Statistics of ordinary prompts, measured once per model, set of prompts and method, whose name is given."""
    if ordinary.texts is None:  # nothing to know them by in another run
        return reference(model, ordinary, progress=progress, measure=measure)
    key = digest(text.encode() for text in (model.fingerprint, repr(SEEDS), *ordinary.texts))
    path = folder / f"{name}-{key[:32]}.safetensors"
    statistics = load_reference(path, key)
    if statistics is None:
        statistics = reference(model, ordinary, progress=progress, measure=measure)
        save_reference(path, statistics, key)
    return statistics
