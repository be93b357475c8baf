"""The embedding attack against its floor, and against attacking one picture at a time with parameter gradients on.

    python benchmarks/attack_speed.py [--pictures 8] [--updates 3]

Ratios within one run, the ways alternating, the best of several rounds each: absolute times say more about the machine.
The floor is the denoiser's forward and its backward to the embedding alone, for as many evaluations.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from common import planted, table, write
from detection_speed import best
from torch import Tensor

from unmemorize.attack.dori import Dori
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Subject
from unmemorize.core.model import LEVELS, Condition, DiffusionModel
from unmemorize.core.sample import generators
from unmemorize.models.load import load


@dataclass(frozen=True)
class Bench:
    """What every way attacks: latents and starts of pictures."""

    model: DiffusionModel
    latents: Tensor
    init: Condition
    how: Dori

    def floor(self) -> None:
        x, rows = self.latents.repeat_interleave(self.how.batch, dim=0), len(self.latents) * self.how.batch
        t = torch.arange(1, rows + 1) * (LEVELS // (rows + 1))
        with frozen(self.model.denoiser):
            for _ in range(self.how.updates):
                embeds = self.init.embeds.clone().requires_grad_()
                given = embeds.repeat_interleave(self.how.batch, dim=0)
                output = self.model.denoiser(x, t, encoder_hidden_states=given, return_dict=False)[0]
                torch.autograd.grad(output.sum(), embeds)

    def ours(self) -> None:
        self.how.attack(Subject(self.model), self.latents, self.init, seeds=range(len(self.latents)))

    def naive(self) -> None:
        """One picture at a time, as a loop around a training step has it: the weights' gradients come along."""
        for latent, init in zip(self.latents, self.init.embeds, strict=True):
            embeds = init[None].clone().requires_grad_()
            optimizer = torch.optim.Adam([embeds], lr=self.how.lr)
            for _ in range(self.how.updates):
                x0 = latent.expand(self.how.batch, -1, -1, -1)
                noise, t = torch.randn_like(x0), torch.randint(1, LEVELS, (self.how.batch,))
                x, given = self.model.add_noise(x0, noise, t), embeds.expand(self.how.batch, -1, -1)
                output = self.model.denoiser(x, t, encoder_hidden_states=given, return_dict=False)[0]
                optimizer.zero_grad()
                (output - noise).square().mean().backward()
                optimizer.step()
        self.model.denoiser.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model, how = load("testbed"), Dori(updates=options.updates)
    texts = [p.text for p in planted(lambda p: True)][: options.pictures]
    bench = Bench(model, model.noise(generators(range(options.pictures))), model.encode(texts), how)
    seconds = best({"floor": bench.floor, "ours": bench.ours, "naive": bench.naive}, options.rounds)
    updates = options.pictures * options.updates
    numbers = {
        "pictures": options.pictures,
        "updates": options.updates,
        "batch": how.batch,
        "seconds_a_picture_and_50_updates": seconds["ours"] / updates * 50,
        "milliseconds_an_evaluation": {name: 1000 * s / updates / how.batch for name, s in seconds.items()},
        "share_of_floor": seconds["floor"] / seconds["ours"],
        "against_one_at_a_time": seconds["naive"] / seconds["ours"],
    }
    cells = [
        f"{options.pictures} × {options.updates} × {how.batch}",
        f"{numbers['seconds_a_picture_and_50_updates']:.1f}",
        f"{numbers['share_of_floor']:.2f}",
        f"{numbers['against_one_at_a_time']:.2f}×",
    ]
    columns = [
        "pictures × updates × batch",
        "seconds a picture, 50 updates",
        "share of the floor",
        "against one by one",
    ]
    write("attack-speed", numbers, table(columns, [cells]))


if __name__ == "__main__":
    main()
