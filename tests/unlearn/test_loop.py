"""The training loop against plain torch written out, alone and in two processes, and with updates that have no loss."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from processes import run_in_two_processes
from unmemorize.core.errors import UserError
from unmemorize.unlearn.checkpoints import load_checkpoint
from unmemorize.unlearn.loop import Loop, Team, Trainable

UPDATES, EMA, CLIP, DECAY, BETAS = 37, 0.9, 0.5, 1e-2, (0.9, 0.99)


def lr(update):
    return 0.05 * (1 - update / UPDATES)


def batch(update):
    generator = torch.Generator().manual_seed(update)
    return torch.randn(8, 5, generator=generator), torch.randn(8, 3, generator=generator)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))


class Regression(Trainable):
    """A small network on random batches, whose processes take shares; some updates have no loss."""

    def __init__(self, model, team, skipped=()):
        self.model, self.team, self.skipped = model, team, skipped

    def backward(self, update):
        if update in self.skipped:
            return None
        x, y = (rows[self.team.share(8)] for rows in batch(update))
        loss = (self.model(x) - y).square().mean()
        loss.backward()
        return {"loss": loss}


def train(folder, skipped=(), **settings):
    """A fresh network after training, and what the loop leaves behind."""
    model = network()
    options = {"betas": BETAS, "weight_decay": DECAY, "clip": CLIP, "ema": EMA, "save_every": 10}
    loop = Loop(folder, UPDATES, lr, **options | settings)
    team = Team()
    return model, loop.run(dict(model.named_parameters()), Regression(model, team, skipped), team)


@pytest.mark.parametrize("skipped", [(), (0, 5, 31)], ids=["every update", "some skipped"])
def test_the_loop_is_adamw_with_a_moving_average(tmp_path, skipped):
    """The same operations in plain torch: weights, average and losses to the last bit."""
    model = network()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1.0, betas=BETAS, weight_decay=DECAY)
    average = {name: p.detach().clone() for name, p in parameters.items()}
    losses, norms = [], []
    for update in range(UPDATES):
        if update not in skipped:
            x, y = batch(update)
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP).item())
            optimizer.param_groups[0]["lr"] = lr(update)
            optimizer.step()
            losses.append(loss.item())
        decay = min(EMA, (update + 1) / (update + 10))
        for name, p in parameters.items():
            average[name].lerp_(p.detach(), 1 - decay)
    trained, fitted = train(tmp_path, skipped)
    assert any(norm > CLIP for norm in norms)
    assert all(torch.equal(p, parameters[name]) for name, p in trained.named_parameters())
    assert fitted.average.keys() == average.keys()
    assert all(torch.equal(fitted.average[name], value) for name, value in average.items())
    made = ~fitted.losses["loss"].isnan()
    assert made.sum() == UPDATES - len(skipped)
    assert fitted.losses["loss"][made].tolist() == losses
    lines = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(range(1, UPDATES + 1))
    assert [line["grad_norm"] for line in lines if "grad_norm" in line] == norms


def test_a_parameter_that_is_not_used_keeps_its_place(tmp_path):
    """It has a gradient of zero: only weight decay moves it, and a checkpoint holds its moments."""
    model = network()
    parameters = dict(model.named_parameters()) | {"unused": nn.Parameter(torch.ones(2))}
    loop = Loop(tmp_path, 3, lambda update: 0.1, weight_decay=DECAY, save_every=1)
    loop.run(parameters, Regression(model, Team()), Team())
    assert torch.allclose(parameters["unused"], torch.full((2,), (1 - 0.1 * DECAY) ** 3))
    assert torch.equal(load_checkpoint(tmp_path)[1]["exp_avg/unused"], torch.zeros(2))


def test_of_too_many_weights_there_is_no_average(tmp_path, monkeypatch):
    """The weights stand for it, those of a run with one, also where a run goes on; checkpoints hold no average."""
    whole, _ = train(tmp_path / "averaged")
    monkeypatch.setattr("unmemorize.unlearn.loop.AVERAGED", 10)
    model, fitted = train(tmp_path / "run")
    for (name, p), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(fitted.average[name], p)
        assert torch.equal(p, other)
    tensors = load_checkpoint(tmp_path / "run")[1]
    assert not [name for name in tensors if name.startswith("ema/")]
    _, fitted = train(tmp_path / "run")  # goes on from its last checkpoint
    assert all(torch.equal(fitted.average[name], p) for name, p in model.named_parameters())


def test_a_folder_of_other_settings_is_refused(tmp_path):
    """Also one whose checkpoints say nothing of them."""
    train(tmp_path, decisive={"seed": 1})
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path, decisive={"seed": 2})
    (newest,) = tmp_path.glob("update-00000037*")
    save_file(load_file(newest), newest, {"run": json.dumps({"update": 37, "settings": {"seed": 1}})})
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path, decisive={"seed": 1})


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.append({here!r})
from safetensors.torch import save_file
from unmemorize.unlearn import loop
from test_loop import train
loop.BUCKET = 20  # gradients travel in several messages, of one tensor or more
model, _ = train(Path(sys.argv[1]) / "run", (3, 4))
if loop.Team().first:
    save_file(dict(model.named_parameters()), Path(sys.argv[1]) / "weights.safetensors")
"""


def test_two_processes_train_what_one_does(tmp_path):
    """Each takes half of every batch, and one of them writes; the weights and the log are those of one process."""
    whole, _ = train(tmp_path / "one", (3, 4))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=os.path.dirname(__file__)))
    run_in_two_processes([sys.executable, str(script), str(tmp_path)])
    weights = load_file(tmp_path / "weights.safetensors")
    for name, p in whole.named_parameters():
        assert torch.allclose(weights[name], p, atol=1e-5), name
    logs = [(tmp_path / run / "loss.jsonl").read_text().splitlines() for run in ("one", "run")]
    for one, two in zip(*logs, strict=True):
        assert json.loads(one) == pytest.approx(json.loads(two), abs=1e-5)
