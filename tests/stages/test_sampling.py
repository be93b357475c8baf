"""Sampling steps and guidance that are not named are the model's own, in every job that makes pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unmemorize.core.specs import (
    AttackSpec,
    AuditSpec,
    DetectSpec,
    GenerateSpec,
    InspectSpec,
    LocalitySpec,
    MitigateSpec,
    TriggerSpec,
)
from unmemorize.stages.inputs import with_sampling

SPECS = {
    "attack": AttackSpec(),
    "audit": AuditSpec(),
    "detect": DetectSpec(),
    "generate": GenerateSpec(prompt="an owl"),
    "inspect": InspectSpec(),
    "locality": LocalitySpec(target="a.png"),
    "mitigate": MitigateSpec(),
    "triggers": TriggerSpec(),
}


@pytest.mark.parametrize("job", SPECS)
def test_what_is_not_named_is_the_model_s_own(job, tiny_model):
    """A model of four steps and guidance 1, as distilled ones are; what is named stays, and guidance 0 is a name."""
    tiny_model.steps, tiny_model.guidance = 4, 1.0
    own = with_sampling(SPECS[job], tiny_model)
    assert (own.steps, own.guidance) == (4, 1.0)
    named = with_sampling(replace(SPECS[job], steps=9, guidance=0.0), tiny_model)
    assert (named.steps, named.guidance) == (9, 0.0)


def test_the_record_holds_the_effective_values(call, tiny_folder, tmp_path, monkeypatch):
    """A probe without --steps and --guidance runs with 50 and 7.5, the model's own, and says so."""
    import json

    import torch

    from unmemorize.data.pictures import save_image

    for i in range(3):
        save_image(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)), tmp_path / "images" / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("owl\n")
    options = (
        "--prompts",
        tmp_path / "prompts.txt",
        "--references",
        tmp_path / "images",
        "--pictures",
        1,
        "--repeats",
        1,
    )
    code, _, err = call("triggers", tiny_folder, *options, "--run", tmp_path / "run", "--json")
    assert code == 0, err
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["spec"]
    assert (recorded["steps"], recorded["guidance"]) == (50, 7.5)
