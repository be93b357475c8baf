"""A model whose memory lies in one value channel that is known: channel 5 of mid_block.attn2.to_v."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unmemorize.core.model import Condition, Counted, Prediction
from unmemorize.models.layers import feed_forward_outputs, value_projections
from unmemorize.models.schedules import SchedulerRun

CHANNEL = 5


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn2 = nn.Module()
        self.attn2.to_v = nn.Linear(8, 8, bias=False)
        nn.init.eye_(self.attn2.to_v.weight)


class PlantedDenoiser(nn.Module):
    """ε = x + its mirror image + what the values add; only the channel adds a picture of any strength."""

    def __init__(self):
        super().__init__()
        self.down_blocks, self.up_blocks = nn.ModuleList([Block(), Block()]), nn.ModuleList([Block()])
        self.mid_block = Block()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("memory", torch.randn(4, 16, 16, generator=generator))

    def forward(self, x, embeds):
        down = sum(block.attn2.to_v(embeds) for block in self.down_blocks).mean((1, 2))
        middle = self.mid_block.attn2.to_v(embeds)[..., CHANNEL].mean(1)
        up = self.up_blocks[0].attn2.to_v(embeds).mean((1, 2))
        strong, weak = (value.reshape(-1, 1, 1, 1) for value in (30 * middle, 1e-3 * (down + up)))
        return x + x.flip(-1) + strong * self.memory + weak * self.memory.flip(1)


class PlantedModel(Counted):
    """The prompt `memorized` drives the channel; any other prompt drives none of them much."""

    name = "planted"
    steps, guidance, batch = 50, 7.5, None

    def __init__(self):
        super().__init__()
        self.denoiser = PlantedDenoiser()

    def encode(self, prompts):
        rows = []
        for prompt in prompts:
            generator = torch.Generator().manual_seed(sum(map(ord, prompt)))
            rows.append(0.02 * torch.randn(3, 8, generator=generator))
            if prompt == "memorized":
                rows[-1][:, CHANNEL] = 1
        return Condition(torch.stack(rows), texts=tuple(prompts))

    def text_inputs(self, cond):
        return cond.embeds

    def text_projections(self, reach="all"):
        return value_projections(self.denoiser, reach)

    def feed_forwards(self):
        return feed_forward_outputs(self.denoiser)

    def noise(self, generators):
        return torch.stack([torch.randn(4, 16, 16, generator=g) for g in generators])

    def schedule(self, steps):
        from diffusers import DDIMScheduler

        return SchedulerRun(DDIMScheduler(), steps, torch.device("cpu"))

    def predict(self, x, t, cond):
        output = self.denoiser(x, cond.embeds)
        self.count_rows(output)
        return Prediction(output, "epsilon", x, torch.tensor(0.1), torch.tensor(0.99))


@pytest.fixture
def planted():
    """The model with one planted channel."""
    return PlantedModel()


@pytest.fixture
def ordinary():
    """Prompts that it has not memorized."""
    return [f"ordinary {i}" for i in range(12)]


@pytest.fixture
def usual(planted, ordinary):
    """Statistics of its ordinary prompts."""
    from unmemorize.localize.reference import reference

    return reference(planted, planted.encode(ordinary))
