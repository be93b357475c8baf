"""Training in several processes."""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

SCRIPT = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from torch import nn
from unmemorize.testbed.fit import fit, share
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
torch.manual_seed(0)
model = nn.Linear(5, 3)
def loss(step):
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 5, generator=generator)[share(8)], torch.randn(8, 3, generator=generator)[share(8)]
    return (model(x) - y).square().mean()
fit(nn.ModuleDict({"m": model}), loss, steps=12, lr=lambda step: 0.01, folder=folder / "fit", save_every=5)
"""


def train(world, folder):
    """Weights after twelve steps of a small regression in `world` processes."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, "-c", SCRIPT, str(rank), str(world), str(folder)] for rank in range(world)]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0] * world
    return load_file(folder / "fit" / "state.safetensors"), (folder / "fit" / "loss.jsonl").read_text()


def test_two_processes_train_what_one_does(tmp_path):
    """Each process takes half of every batch; the weights are those of one process, and one of them writes."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, log = train(1, tmp_path / "one")
    two, shared_log = train(2, tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    assert len(log.splitlines()) == len(shared_log.splitlines())
