"""Sampling steps and guidance that are not named are the model's own, in every job that makes pictures."""

from __future__ import annotations

import pytest

from unmemorize.audit.spec import AuditSpec
from unmemorize.jobs.attack import AttackSpec
from unmemorize.jobs.generate import GenerateSpec
from unmemorize.jobs.inputs import with_sampling
from unmemorize.jobs.locality import LocalitySpec
from unmemorize.jobs.objectives import MitigateSpec
from unmemorize.jobs.triggers import TriggerSpec

SPECS = {
    "audit": (AuditSpec(), "steps"),
    "attack": (AttackSpec(), "sampling"),
    "generate": (GenerateSpec("testbed", "an owl"), "steps"),
    "locality": (LocalitySpec("testbed", "a.png"), "sampling_steps"),
    "mitigate": (MitigateSpec(), "sampling"),
    "triggers": (TriggerSpec(), "steps"),
}


@pytest.mark.parametrize("job", SPECS)
def test_what_is_not_named_is_the_model_s_own(job, tiny_model):
    """A model of four steps and guidance 1, as distilled ones are; what is named stays, and guidance 0 is a name."""
    tiny_model.steps, tiny_model.guidance = 4, 1.0
    spec, field = SPECS[job]
    own = with_sampling(spec, tiny_model, field)
    assert (getattr(own, field), own.guidance) == (4, 1.0)
    named = with_sampling(type(spec)(**vars(spec) | {field: 9, "guidance": 0.0}), tiny_model, field)
    assert (getattr(named, field), named.guidance) == (9, 0.0)


def test_the_record_holds_the_effective_values(call, tiny_folder, tmp_path, monkeypatch):
    """A probe without --steps and --guidance runs with 50 and 7.5, the model's own, and says so."""
    import json

    import torch

    from unmemorize.data.pictures import save_image

    for i in range(3):
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)), tmp_path / "images" / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("owl\n")
    options = ("--prompts", tmp_path / "prompts.txt", "--images", tmp_path / "images", "--seeds", 1, "--repeats", 1)
    code, _, err = call("triggers", tiny_folder, *options, "--run", tmp_path / "run", "--json")
    assert code == 0, err
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["spec"]
    assert (recorded["steps"], recorded["guidance"]) == (50, 7.5)
