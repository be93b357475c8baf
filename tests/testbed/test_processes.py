"""Training in several processes, with samples left out of the loss."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from processes import run_in_two_processes
from unmemorize.testbed.fit import fit
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import Rows
from unmemorize.testbed.train import denoising_loss
from unmemorize.unlearn.checkpoints import load_checkpoint

HERE = os.path.dirname(__file__)
SCRIPT = f"import sys; sys.path.insert(0, {HERE!r}); from test_processes import train; train(sys.argv[1])"
THRESHOLD = 0.05  # of magnitudes: some batches lose all rows of one process, some those of both


class Denoiser(nn.Module):
    """Adds a number of the caption to the noisy picture: the text-conditional magnitude is the caption's alone."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 0.1]))

    def forward(self, x, t, caption):
        return SimpleNamespace(sample=self.scale[0] * x + self.scale[1] * caption.mean(dim=(1, 2)).view(-1, 1, 1, 1))


def train(folder):
    """The last checkpoint of thirty steps under the filter."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    captions = torch.randn(40, 3, 2, generator=generator)
    latents = torch.randn(40, 4, 2, 2, generator=generator)
    rows = Rows(tuple(map(str, range(40))), torch.arange(40)[:, None], torch.arange(40)[:, None])
    unet = Denoiser()
    recipe = Recipe(batch=4, filter=THRESHOLD)
    loss = denoising_loss(unet, captions, latents, rows, recipe)
    fit(nn.ModuleDict({"unet": unet}), loss, steps=30, lr=lambda step: 0.05, folder=Path(folder), save_every=10)
    return load_checkpoint(Path(folder))


def test_two_processes_filter_what_one_does(tmp_path):
    """Every kept row of a batch counts once, however they fall to the processes; without any there is no step."""
    record, one = train(tmp_path / "one")
    steps = sum(bool(row) for row in record["log"])
    assert 0 < steps < len(record["log"])
    run_in_two_processes([sys.executable, "-c", SCRIPT, str(tmp_path / "two")])
    shared_record, two = load_checkpoint(tmp_path / "two")
    assert shared_record["steps"] == steps
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
