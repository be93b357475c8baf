"""The embedding attack against its floor, and against attacking one picture at a time with parameter gradients on.

    python benchmarks/attack_speed.py [--pictures 8] [--updates 3]

Ratios within one run, the ways alternating, the best of several rounds each: absolute times say more about the machine.
The floor is the denoiser's forward and its backward to the embedding alone, for as many evaluations.
"""

from __future__ import annotations

import argparse

import torch
from common import planted, table, write
from detection_speed import best

from unmemorize.attack.dori import Dori, dori
from unmemorize.core.hooks import frozen
from unmemorize.core.sample import generators
from unmemorize.models.load import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model, how = load("testbed"), Dori(steps=options.updates)
    latents = model.noise(generators(range(options.pictures)))
    init = model.encode([p.text for p in planted(lambda p: True)][: options.pictures]).embeds
    seeds, rows = list(range(options.pictures)), options.pictures * how.batch
    t = torch.arange(1, rows + 1) * (model.training_timesteps // (rows + 1))

    def floor() -> None:
        x = latents.repeat_interleave(how.batch, dim=0)
        with frozen(model.denoiser):
            for _ in range(options.updates):
                embeds = init.clone().requires_grad_()
                given = embeds.repeat_interleave(how.batch, dim=0)
                output = model.denoiser(x, t, encoder_hidden_states=given, return_dict=False)[0]
                torch.autograd.grad(output.sum(), embeds)

    def ours() -> None:
        dori(model, latents, init, seeds=seeds, how=how)

    def naive() -> None:
        """One picture at a time, as a loop around a training step has it: the weights' gradients come along."""
        for i in range(options.pictures):
            embeds = init[i : i + 1].clone().requires_grad_()
            optimizer = torch.optim.Adam([embeds], lr=how.lr)
            for _ in range(options.updates):
                x0 = latents[i : i + 1].expand(how.batch, -1, -1, -1)
                noise, times = torch.randn_like(x0), torch.randint(1, model.training_timesteps, (how.batch,))
                x = model.add_noise(x0, noise, times)
                given = embeds.expand(how.batch, -1, -1)
                output = model.denoiser(x, times, encoder_hidden_states=given, return_dict=False)[0]
                optimizer.zero_grad()
                (output - noise).square().mean().backward()
                optimizer.step()
        model.denoiser.zero_grad()

    seconds = best({"floor": floor, "ours": ours, "naive": naive}, options.rounds)
    evaluations = rows * options.updates
    numbers = {
        "pictures": options.pictures,
        "updates": options.updates,
        "batch": how.batch,
        "seconds_a_picture_and_50_updates": seconds["ours"] / options.pictures / options.updates * 50,
        "milliseconds_an_evaluation": {name: 1000 * value / evaluations for name, value in seconds.items()},
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
