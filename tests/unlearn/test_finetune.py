"""Fine-tuning: resumed to the byte, in two processes as in one, averaged as the formula says, and what stops it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from processes import ALONE, run_in_two_processes
from unmemorize.core.errors import UserError
from unmemorize.core.results import Found, Pairs, Surrogates
from unmemorize.models.load import wrap
from unmemorize.unlearn.adversarial import InnerLoop, Replacing
from unmemorize.unlearn.deletion import Ordinary
from unmemorize.unlearn.finetune import Finetune, Stateless, finetune

QUICK = Finetune(updates=6, lr=1e-3, save_every=2, ema=0.9)


class Drift:
    """An attack that costs nothing but depends on where it starts, on the seed and on the weights."""

    def attack(self, subject, latents, start, *, seeds):
        weight = subject.model.denoiser.conv_in.weight.detach().sum()
        steps = [torch.full_like(y, seed % 7 / 10) for y, seed in zip(start.embeds, seeds, strict=True)]
        moved = start.with_embeds(start.embeds + torch.stack(steps) * weight)
        return Found({1: moved}, torch.zeros(1, len(latents)), 0)


def adversarial(model, batch=4):
    """An attack before every update."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(9, 4, 8, 8, generator=generator)
    captions = model.encode([f"a thing {i}" for i in range(9)])
    keep = Ordinary(Pairs(latents[:4], captions[:4]), model.encode([""]), batch=batch)
    memorized = Pairs(latents[4:7], captions[4:7])
    surrogates = Surrogates(torch.randn(6, 4, 8, 8, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2]))
    return Replacing(keep, surrogates, InnerLoop(Drift(), memorized))


def train(pipe, folder, how=QUICK, **options):
    """Fine-tune a fresh tiny model; returns its weights and the result."""
    model = wrap(pipe)
    result = finetune(model, options.pop("objective", None) or adversarial(model), how, folder, **options)
    return {name: p.clone() for name, p in model.denoiser.state_dict().items()}, result


@pytest.fixture(scope="module")
def whole(make_pipe, tmp_path_factory):
    """Weights and result of an uninterrupted run."""
    return train(make_pipe(), tmp_path_factory.mktemp("whole"))


class Stop(Exception):
    pass


def stop_at(update):
    def progress(stage, done, total):
        if stage == "updates" and done == update:
            raise Stop

    return progress


@pytest.mark.parametrize("update", [1, 2, 3, 5, 6])
def test_a_run_that_stopped_goes_on_to_the_same_bytes(make_pipe, tmp_path, whole, update):
    """Before the first checkpoint, between two, and after the last update."""
    with pytest.raises(Stop):
        train(make_pipe(), tmp_path, progress=stop_at(update))
    weights, result = train(make_pipe(), tmp_path)
    for name, value in whole[0].items():
        assert torch.equal(weights[name], value), name
    assert result.evaluations == whole[1].evaluations
    assert all(torch.equal(result.losses[k], v) for k, v in whole[1].losses.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "loss.jsonl",
        "update-00000004.safetensors",
        "update-00000006.safetensors",
    ]


def test_a_run_is_prolonged_as_if_it_had_been_longer(make_pipe, tmp_path, whole):
    """The number of updates is the one setting that may change."""
    train(make_pipe(), tmp_path, replace(QUICK, updates=4))
    weights, _ = train(make_pipe(), tmp_path)
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())
    with pytest.raises(UserError, match="other settings"):
        train(make_pipe(), tmp_path, replace(QUICK, lr=1e-4))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(make_pipe, tmp_path, whole):
    """Of two that are kept, one is enough."""
    train(make_pipe(), tmp_path)
    last = tmp_path / "update-00000006.safetensors"
    last.write_bytes(last.read_bytes()[:5000])
    weights, _ = train(make_pipe(), tmp_path)
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = [{tests!r}, {here!r}]
from safetensors.torch import save_file
from conftest import build_pipe
from test_finetune import train
kill = int(sys.argv[2])
def progress(stage, done, total):
    if done == kill:
        os.kill(os.getpid(), signal.SIGKILL)
weights, result = train(build_pipe(), Path(sys.argv[1]) / "run", progress=progress)
if "RANK" in os.environ:
    group = torch.distributed.distributed_c10d._get_default_group()
    seconds = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    (Path(sys.argv[1]) / "patience").write_text(str(seconds))
if int(os.environ.get("RANK", 0)) == 0:
    save_file({{k: v.contiguous() for k, v in weights.items()}}, Path(sys.argv[1]) / "weights.safetensors")
    (Path(sys.argv[1]) / "evaluations").write_text(str(result.evaluations))
"""


def script(tmp_path):
    here = os.path.dirname(__file__)
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(tests=os.path.dirname(here), here=here))
    return path


@pytest.mark.timeout(900)
def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path, whole):
    """SIGKILL after the third update; the second process takes up the second's checkpoint."""
    from safetensors.torch import load_file

    command = [sys.executable, str(script(tmp_path)), str(tmp_path)]
    assert subprocess.run([*command, "3"], env=os.environ | ALONE, timeout=400).returncode == -9
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"loss.jsonl", "update-00000002.safetensors"}
    assert subprocess.run([*command, "-1"], env=os.environ | ALONE, timeout=400, capture_output=True).returncode == 0
    weights = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


@pytest.mark.timeout(900)
def test_two_processes_train_what_one_does(tmp_path, whole):
    """Each takes half of every update's rows and knows the other's embeddings; one writes; the cost is the same."""
    from safetensors.torch import load_file

    run_in_two_processes([sys.executable, str(script(tmp_path)), str(tmp_path), "-1"], timeout=800)
    weights = load_file(tmp_path / "weights.safetensors")
    for name, value in whole[0].items():
        assert torch.allclose(weights[name], value, atol=1e-4), name
    assert (tmp_path / "evaluations").read_text() == str(whole[1].evaluations)
    assert float((tmp_path / "patience").read_text()) >= 24 * 3600  # the others wait while one of them measures


class Pull(Stateless):
    """Pulls every parameter up with gradient one: AdamW without decay moves each by the learning rate."""

    def backward(self, model, update, team):
        total = sum(p.sum() for p in model.denoiser.parameters() if p.requires_grad)
        (-total).backward()
        return {"sum": total}


def test_the_average_is_the_formula_s(make_pipe, tmp_path):
    """Weights at start + k·lr: their average with decay min(0.9, n / (n + 9)) in closed form."""
    start = wrap(make_pipe()).denoiser.conv_in.weight.detach().double()
    how = replace(QUICK, updates=5, weight_decay=0.0, lr=0.01)
    weights, _ = train(make_pipe(), tmp_path, how, objective=Pull())
    average = 0.0
    for n in range(1, 6):
        decay = min(0.9, n / (n + 9))
        average = decay * average + (1 - decay) * 0.01 * n
    assert torch.allclose(weights["conv_in.weight"].double(), start + average, atol=1e-5)


def test_rates_of_zero_end_the_run_and_the_check_sees_the_average(make_pipe, tmp_path):
    """Patience two: at the second zero in a row; the raw weights come back after each check."""
    rates, seen = iter([0.0, 0.5, 0.0, 0.0, 0.7]), []
    model = wrap(make_pipe())
    weight = model.denoiser.conv_in.weight

    def check(update):
        seen.append(weight.detach().mean().item())
        return next(rates)

    how = replace(QUICK, updates=50, check_every=2, lr=0.01, weight_decay=0.0)
    start = weight.detach().mean().item()
    result = finetune(model, Pull(), how, tmp_path, check=check)
    assert result.updates == 8
    assert result.checks == ((2, 0.0), (4, 0.5), (6, 0.0), (8, 0.0))
    assert weight.detach().mean().item() == seen[-1]  # what was tested is what is kept
    assert 0 < seen[0] - start < 0.02 - 1e-3  # behind the raw weights, which moved by 0.02
    again = finetune(wrap(make_pipe()), Pull(), how, tmp_path, check=lambda update: 1.0)
    assert (again.updates, again.checks) == (8, result.checks)


class Breaks(Stateless):
    """A loss that is not a number from the fourth update on."""

    def backward(self, model, update, team):
        loss = model.denoiser.conv_in.weight.square().sum() * (torch.nan if update >= 3 else 1.0)
        loss.backward()
        return {"loss": loss}


def test_a_loss_that_is_no_number_stops_the_run(make_pipe, tmp_path):
    """The message names the update and what is kept; the checkpoint holds finite weights."""
    from safetensors.torch import load_file

    with pytest.raises(UserError, match=r"update 4: the loss is not finite: .* up to update 2"):
        train(make_pipe(), tmp_path, objective=Breaks())
    (path,) = tmp_path.glob("*.safetensors")
    assert all(v.isfinite().all() for v in load_file(path).values())


def test_a_full_disk_is_one_line_and_spares_the_last_checkpoint(make_pipe, tmp_path, whole):
    """A limit on file sizes stands for the full disk: real writes fail half way."""
    import resource

    train(make_pipe(), tmp_path, replace(QUICK, updates=4))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match="make room"):
            train(make_pipe(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    weights, _ = train(make_pipe(), tmp_path)
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())


def test_lora_is_merged_into_an_ordinary_model(make_pipe, tmp_path):
    """The merged model predicts what the adapted one predicted; only attention changed; no trace of the adapter."""
    model = wrap(make_pipe())
    before = {name: p.clone() for name, p in model.denoiser.state_dict().items()}
    x, cond = model.noise([torch.Generator().manual_seed(0)]), model.encode(["an owl on a fence"])
    adapted = []

    def check(update):
        with torch.no_grad():
            adapted.append(model.predict(x, torch.tensor(500), cond).output)
        return 1.0

    finetune(model, adversarial(model), replace(QUICK, lora=2, lr=1e-2, check_every=6), tmp_path, check=check)
    after = model.denoiser.state_dict()
    assert after.keys() == before.keys()
    with torch.no_grad():
        assert torch.allclose(model.predict(x, torch.tensor(500), cond).output, adapted[0], atol=1e-5)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".attn" in name for name in changed)
    assert all(p.requires_grad for p in model.denoiser.parameters())


def test_gradient_checkpointing_changes_no_weight(make_pipe, tmp_path, whole):
    """It recomputes; it does not approximate."""
    weights, _ = train(make_pipe(), tmp_path, replace(QUICK, gradient_checkpointing=True))
    assert all(torch.allclose(weights[name], value, atol=1e-5) for name, value in whole[0].items())


def test_the_rate_falls_twice():
    """To zero, and from half to zero in the end; without settling it stays."""
    how = Finetune(updates=12, lr=1.0, settling=4)
    assert [how.rate(update) for update in (0, 4, 7, 8, 10, 11)] == pytest.approx([1, 0.5, 0.125, 0.5, 0.25, 0.125])
    assert Finetune(updates=12, lr=1.0).rate(11) == 1
