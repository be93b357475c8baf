"""NeMo in joint attention: it finds the planted channel of the text's stream, and records what the denoiser reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines import tiny
from unmemorize.core.errors import NotApplicable
from unmemorize.core.hooks import patched
from unmemorize.core.methods import Subject
from unmemorize.core.sample import generators
from unmemorize.localize.control import aimed_at_ordinary
from unmemorize.localize.nemo_joint import JointNemo
from unmemorize.localize.reference import Start
from unmemorize.mitigate.edit import Edit
from unmemorize.models.layers import linear_layers
from unmemorize.models.load import wrap

CHANNEL = 5
STREAMS = ["sd3", "flux", "chroma", "qwen", "z_image", "flux2_klein", "flux2", "lumina2", "aura_flow", "kandinsky5"]


class JointDenoiser(nn.Module):
    """ε = x + its mirror image + a picture as strong as one channel of the second block; text is changed by x first."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(nn.ModuleDict({"add_v_proj": nn.Linear(8, 8)}) for _ in range(3))
        for block in self.transformer_blocks:
            nn.init.eye_(block["add_v_proj"].weight)
            nn.init.zeros_(block["add_v_proj"].bias)
        self.register_buffer("memory", torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(3)))

    def forward(self, x, embeds):
        text = embeds + 0.01 * x.mean((1, 2, 3))[:, None, None]
        values = [block["add_v_proj"](text) for block in self.transformer_blocks]
        weak = 1e-3 * (values[0] + values[2]).mean((1, 2))
        strong, weak = (value.reshape(-1, 1, 1, 1) for value in (30 * values[1][..., CHANNEL].mean(1), weak))
        return x + x.flip(-1) + strong * self.memory + weak * self.memory.flip(1)


@pytest.fixture
def joint(planted):
    """The planted model of NeMo's tests with this denoiser."""
    planted.denoiser, planted.fingerprint = JointDenoiser(), "planted"
    planted.text_stream_values = lambda reach="all": linear_layers(planted.denoiser, "add_v_proj")
    return planted


def test_the_planted_channel_is_found_and_nothing_else(joint, ordinary, tmp_path):
    """Aimed at ordinary prompts, the control, the same search finds none; the edit makes the seeds differ."""
    usual = joint.encode(ordinary)
    method = JointNemo(cache=str(tmp_path), threshold=0.5)

    def locate(prompts):
        return method.find(Subject(joint), joint.encode(prompts), ordinary=usual)

    found = locate(["memorized"])
    places = {name: mask.nonzero()[:, 0].tolist() for name, mask in found.masks.items()}
    assert places == {"transformer_blocks.1.add_v_proj": [CHANNEL]}
    assert aimed_at_ordinary(locate, ["memorized"], ordinary).selected == 0
    assert found.method == "nemo-joint"
    before = locate(["memorized"]).per_prompt[0].facts["strength"]
    Edit.of(found, "planted").apply(joint, force=True)
    assert locate(["memorized"]).selected == 0 < before


@pytest.mark.parametrize("family", STREAMS)
def test_channels_are_of_text_tokens_alone(family):
    """What is recorded is what a prediction at seed 0 gives; every layer takes part, and reads the text's tokens."""
    model = wrap(tiny(family), size=(64, 64))
    cond = model.encode(["a lighthouse at dusk", "an owl on a fence, and two red kites"])
    values = JointNemo().activations(model, cond)
    layers = model.text_stream_values()
    assert values.keys() == layers.keys() != set()
    start = Start.of(model, [0])
    t = torch.as_tensor(start.t)
    alone, other = cond[[1]], model.noise(generators([7]))
    tokens = {}
    handles = [
        layer.register_forward_hook(lambda m, given, out, name=name: tokens.update({name: out}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        free = model.predict(start.x, t, alone).output
    for handle in handles:
        handle.remove()
    for name, seen in tokens.items():
        assert torch.equal(values[name][1], seen[0].abs().float().mean(0))
        assert seen.shape[1] <= alone.embeds.shape[1] + 32  # Z-Image pads to multiples of 32
    with torch.no_grad():
        for name in layers:
            with patched(model.denoiser, {name: torch.zeros_like}):
                assert not torch.equal(model.predict(start.x, t, alone).output, free), name
        assert not torch.equal(model.predict(other, t, alone).output, free)
    assert set(model.text_stream_values("down-mid")) <= set(layers)


@pytest.mark.parametrize("family", ["flux", "lumina2"])
def test_the_refined_search_ends(family, tmp_path):
    """What precedes a layer is computed once, rotary tables and lists of numbers left out."""
    model = wrap(tiny(family), size=(64, 64))
    method = JointNemo(cache=str(tmp_path), threshold=-1, start=1.5, minimum=1.5, seeds=2)
    ordinary = model.encode([f"a field and {i} boats" for i in range(3)])
    found = method.find(Subject(model), model.encode(["an owl"]), ordinary=ordinary)
    assert found.per_prompt[0].facts["channels"] == found.selected > 0


@pytest.mark.parametrize(
    ("family", "reason"), [("sd", "use nemo"), ("pixart", "use nemo"), ("cogview4", "share their value projections")]
)
def test_without_a_stream_of_the_text_it_does_not_apply(family, reason):
    """Cross-attention has NeMo; where one projection serves text and picture, no channel is the text's alone."""
    with pytest.raises(NotApplicable, match=reason):
        wrap(tiny(family)).text_stream_values()
