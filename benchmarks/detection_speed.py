"""First-step detection against the floor, and against the loop that samples every prompt to the end.

    python benchmarks/detection_speed.py [--prompts 128]

Ratios within one run, the ways alternating, the best of several rounds each: absolute times say more about the machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from common import planted, table, write

from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, generators, trajectory
from unmemorize.detect.noise import NoiseGap
from unmemorize.models.load import load

SEEDS = (0, 1, 2, 3)
BATCH = 64
SAMPLER = Sampler(50, 7.5)


def best(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least seconds of each way over alternating rounds."""
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            since = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - since)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=128)
    count = parser.parse_args().prompts
    model = load("testbed")
    texts = [p.text for p in planted(lambda p: True)][:count]
    rows = count * len(SEEDS)
    x, cond = model.noise(generators(range(BATCH))), model.encode(texts[:1] * BATCH)
    t = model.schedule(50).timesteps[0]

    @torch.no_grad()
    def floor() -> None:
        for _ in range((rows + len(SEEDS)) // BATCH):
            model.denoiser(x, t, encoder_hidden_states=cond.embeds)

    def ours() -> None:
        NoiseGap().score(Subject(model, SAMPLER), model.encode(texts), seeds=SEEDS)

    def naive() -> None:
        for text in texts[: count // 32]:  # a thirty-second of the prompts: the rest would take as long each
            cond = model.encode([text] * len(SEEDS))
            first, *_ = trajectory(model, cond, seeds=SEEDS, sampler=SAMPLER)
            first.cond.gap(first.uncond)

    seconds = best({"floor": floor, "ours": ours}, 5) | best({"naive": naive}, 1)
    share = seconds["floor"] / seconds["ours"]
    faster = seconds["naive"] * 32 / seconds["ours"]
    numbers = {"share_of_floor": share, "times_faster_than_full_sampling": faster, "threads": torch.get_num_threads()}
    cells = [f"{count} × {len(SEEDS)}", f"{count / seconds['ours']:.0f}", f"{share:.2f}", f"{faster:.0f}×"]
    heads = ["prompts × seeds", "prompts a second here", "share of the floor", "against sampling 50 steps a prompt"]
    write("detection-speed", numbers, table(heads, [cells]))


if __name__ == "__main__":
    main()
