"""Detection and the embedding attack against their floor, and against the plain way to write them.

Ratios within one run, the ways alternating, the best of several rounds each: absolute times say more about the machine.
The floor is the denoiser alone for as many evaluations: its forward, and for the attack its backward to the embedding.
The plain ways sample every prompt to the end, and attack one picture at a time with parameter gradients on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from branches import ordinary, subject_of
from harness import Options, Row, Study, table
from torch import Tensor

from unmemorize.attack.dori import Dori
from unmemorize.core.hooks import frozen
from unmemorize.core.methods import Subject
from unmemorize.core.model import LEVELS, Condition, DiffusionModel
from unmemorize.core.sample import Sampler, generators, trajectory
from unmemorize.detect.noise import NoiseGap

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


def detection(model: DiffusionModel, texts: list[str]) -> Row:
    """First-step detection of so many prompts."""
    count, rows = len(texts), len(texts) * len(SEEDS)
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
    return {
        "prompts": count,
        "prompts_a_second": count / seconds["ours"],
        "share_of_floor": seconds["floor"] / seconds["ours"],
        "times_faster_than_full_sampling": seconds["naive"] * 32 / seconds["ours"],
        "threads": torch.get_num_threads(),
    }


@dataclass(frozen=True)
class Attacked:
    """What every way attacks: latents and starts of pictures."""

    model: DiffusionModel
    latents: Tensor
    init: Condition
    attack: Dori

    def floor(self) -> None:
        x, rows = self.latents.repeat_interleave(self.attack.batch, dim=0), len(self.latents) * self.attack.batch
        t = torch.arange(1, rows + 1) * (LEVELS // (rows + 1))
        with frozen(self.model.denoiser):
            for _ in range(self.attack.updates):
                embeds = self.init.embeds.clone().requires_grad_()
                given = embeds.repeat_interleave(self.attack.batch, dim=0)
                output = self.model.denoiser(x, t, encoder_hidden_states=given, return_dict=False)[0]
                torch.autograd.grad(output.sum(), embeds)

    def ours(self) -> None:
        self.attack.attack(Subject(self.model), self.latents, self.init, seeds=range(len(self.latents)))

    def naive(self) -> None:
        """One picture at a time, as a loop around a training step has it: the weights' gradients come along."""
        for latent, init in zip(self.latents, self.init.embeds, strict=True):
            embeds = init[None].clone().requires_grad_()
            optimizer = torch.optim.Adam([embeds], lr=self.attack.lr)
            for _ in range(self.attack.updates):
                x0 = latent.expand(self.attack.batch, -1, -1, -1)
                noise, t = torch.randn_like(x0), torch.randint(1, LEVELS, (self.attack.batch,))
                x, given = self.model.add_noise(x0, noise, t), embeds.expand(self.attack.batch, -1, -1)
                output = self.model.denoiser(x, t, encoder_hidden_states=given, return_dict=False)[0]
                optimizer.zero_grad()
                (output - noise).square().mean().backward()
                optimizer.step()
        self.model.denoiser.zero_grad()


def attack(model: DiffusionModel, texts: list[str], updates: int, rounds: int) -> Row:
    """The attack on as many pictures of noise as there are prompts."""
    dori, pictures = Dori(updates=updates), len(texts)
    what = Attacked(model, model.noise(generators(range(pictures))), model.encode(texts), dori)
    seconds = best({"floor": what.floor, "ours": what.ours, "naive": what.naive}, rounds)
    made = pictures * updates
    return {
        "pictures": pictures,
        "updates": updates,
        "batch": dori.batch,
        "seconds_a_picture_and_50_updates": seconds["ours"] / made * 50,
        "milliseconds_an_evaluation": {name: 1000 * s / made / dori.batch for name, s in seconds.items()},
        "share_of_floor": seconds["floor"] / seconds["ours"],
        "against_one_at_a_time": seconds["naive"] / seconds["ours"],
    }


def measure(options: Options) -> Row:
    """Both."""
    model, (_, texts) = subject_of("C").model, ordinary()
    found = detection(model, texts[: options.prompts])
    return {"detection": found, "attack": attack(model, texts[: options.pictures], options.updates, options.rounds)}


def page(numbers: Row) -> Iterator[str]:
    """A table each."""
    found = numbers["detection"]
    cells = [f"{found['prompts']} × {len(SEEDS)}", f"{found['prompts_a_second']:.0f}", f"{found['share_of_floor']:.2f}"]
    head = "prompts × seeds | prompts a second here | share of the floor | against sampling 50 steps a prompt"
    yield from table(head, [[*cells, f"{found['times_faster_than_full_sampling']:.0f}×"]])
    found = numbers["attack"]
    cells = [f"{found['pictures']} × {found['updates']} × {found['batch']}"]
    cells += [f"{found['seconds_a_picture_and_50_updates']:.1f}", f"{found['share_of_floor']:.2f}"]
    head = "pictures × updates × batch | seconds a picture, 50 updates | share of the floor | against one by one"
    yield from ("", *table(head, [[*cells, f"{found['against_one_at_a_time']:.2f}×"]]))


STUDY = Study(
    title="Speed of detection and of the attack",
    about="Ratios within one run. The floor is the denoiser's forward; for the attack with its backward to the "
    "embedding.",
    page=page,
    measure=measure,
    options={"prompts": 128, "pictures": 8, "updates": 3, "rounds": 5},
)
