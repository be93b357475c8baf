"""Edits: taken back bit for bit, saved and loaded as they were, refused where they do not belong."""

from __future__ import annotations

import copy
import hashlib
import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from unmemorize.core.errors import UserError
from unmemorize.core.hooks import patched
from unmemorize.core.methods import Subject
from unmemorize.core.results import Localization, PromptUnits
from unmemorize.mitigate.edit import Edit, random_like, removed_norm
from unmemorize.models.load import wrap

VALUE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
FEED = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"


class Boom(Exception):
    """Raised inside a block on purpose."""


@pytest.fixture
def pipe(tiny_pipe):
    """A pipeline of its own denoiser, which may be changed."""
    own = copy.copy(tiny_pipe)
    own.unet = copy.deepcopy(tiny_pipe.unet)
    return own


def localization(units, masks, method="nemo"):
    parameters = {"threshold": 0.25, "layers": "down-mid", "per_prompt": False, "scales": 1}
    return Localization(method, units, masks, parameters, (0, 1), ("an owl", "<script>../x"), 7)


@pytest.fixture
def channels(pipe):
    """Channels 1 and 4 of the middle's value projection."""
    mask = torch.zeros(16, dtype=torch.bool)
    mask[[1, 4]] = True
    return Edit.of(localization("channels", {VALUE: mask}), wrap(pipe).fingerprint)


@pytest.fixture
def weights(pipe):
    """A few weights of a feed-forward."""
    mask = torch.zeros(pipe.unet.get_submodule(FEED).weight.shape, dtype=torch.bool)
    mask[0, 3] = mask[2, 5] = mask[2, 6] = True
    return Edit.of(localization("weights", {FEED: mask}, "wanda"), wrap(pipe).fingerprint)


def bits(module):
    return {name: value.clone().view(torch.int32) for name, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_applied_zeroes_and_restores_bit_for_bit(pipe, channels, weights):
    """Rows and entries are zero inside; afterwards, also after an exception, every bit is back, NaN and −0 too."""
    with torch.no_grad():
        pipe.unet.get_submodule(VALUE).weight[1, 0] = torch.nan
        pipe.unet.get_submodule(FEED).weight[0, 3] = -0.0
    model, before = wrap(pipe), bits(pipe.unet)

    def block():
        with (channels | weights).applied(Subject(model)):
            assert torch.equal(pipe.unet.get_submodule(VALUE).weight[[1, 4]], torch.zeros(2, 16))
            assert pipe.unet.get_submodule(FEED).weight[2, 5] == 0
            raise Boom

    with pytest.raises(Boom):
        block()
    assert same(bits(pipe.unet), before)
    with channels.applied(Subject(model)):
        changed = bits(pipe.unet)
    assert same(bits(pipe.unet), before)
    assert {name for name in before if not torch.equal(before[name], changed[name])} == {f"{VALUE}.weight"}


def test_an_edit_of_channels_is_the_channels_blocked(pipe, channels):
    """Zeroed rows give what zeroed outputs give."""
    model = wrap(pipe)
    cond, x, t = model.encode(["an owl"]), torch.ones(1, 4, 8, 8), torch.tensor(500)
    with torch.no_grad(), patched(model.denoiser, {VALUE: lambda v: v.masked_fill(channels.channels[VALUE], 0)}):
        blocked = model.predict(x, t, cond).output
    with torch.no_grad(), channels.applied(Subject(model)):
        assert torch.allclose(model.predict(x, t, cond).output, blocked, atol=1e-6)


def test_the_bias_of_a_zeroed_channel_is_zero_too(pipe):
    """A channel is silent only without its bias."""
    mask = torch.zeros(16, dtype=torch.bool).index_fill(0, torch.tensor([2]), True)
    layer = FEED
    edit = Edit.of(localization("channels", {layer: mask}), wrap(pipe).fingerprint)
    edit.apply(wrap(pipe))
    assert pipe.unet.get_submodule(layer).bias[2] == 0
    assert pipe.unet.get_submodule(layer).bias[[0, 1, 3]].all()


def test_saved_and_loaded_it_is_the_same_byte_for_byte(channels, weights, tmp_path):
    """Masks, model and origin come back; saving again writes the same bytes; prompts are there as hashes only."""
    edit = channels | weights
    edit.save(tmp_path / "a.safetensors")
    found = Edit.load(tmp_path / "a.safetensors")
    assert torch.equal(found.channels[VALUE], edit.channels[VALUE])
    assert torch.equal(found.weights[FEED], edit.weights[FEED])
    assert (found.fingerprint, found.origins, found.selected) == (edit.fingerprint, edit.origins, 5)
    found.save(tmp_path / "b.safetensors")
    for ending in (".safetensors", ".json"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()
    record = json.loads((tmp_path / "a.json").read_text())
    assert [origin["method"] for origin in record["origins"]] == ["nemo", "wanda"]
    assert record["origins"][0]["parameters"]["per_prompt"] is False
    assert "owl" not in (tmp_path / "a.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors", "b.json", "b.safetensors"]


def test_an_empty_edit_changes_nothing(pipe, tmp_path):
    """It can be saved, loaded and applied like any other."""
    Edit.of(localization("channels", {}), wrap(pipe).fingerprint).save(tmp_path / "e.safetensors")
    before, edit = bits(pipe.unet), Edit.load(tmp_path / "e.safetensors")
    edit.apply(wrap(pipe))
    assert edit.selected == 0
    assert same(bits(pipe.unet), before)


def test_one_prompts_edit(pipe, channels):
    """Only that prompt's units and only its hash."""
    mask = torch.zeros(16, dtype=torch.bool).index_fill(0, torch.tensor([1]), True)
    found = localization("channels", {VALUE: channels.channels[VALUE]})
    edit = Edit.of(found, "f", prompt=PromptUnits("an owl", {VALUE: mask}, {}))
    assert torch.equal(edit.channels[VALUE], mask)
    assert len(edit.origins[0].prompts) == 1


def test_apply_is_for_good_and_for_this_model_only(pipe, channels):
    """A plain pipeline of the fingerprint is changed; any other is refused unless forced."""
    other = copy.copy(pipe)
    other.unet = copy.deepcopy(pipe.unet)
    channels.apply(wrap(pipe))
    assert not pipe.unet.get_submodule(VALUE).weight[[1, 4]].any()
    with torch.no_grad():
        other.unet.conv_in.bias[0] += 1
    before = bits(other.unet)
    with pytest.raises(UserError, match="another model"):
        channels.apply(wrap(other))
    assert same(bits(other.unet), before)
    channels.apply(wrap(other), force=True)
    assert not other.unet.get_submodule(VALUE).weight[[1, 4]].any()


def test_an_edit_that_does_not_fit_changes_nothing(pipe, channels):
    """A missing module or another shape is a line, forced or not, and no weight is touched."""
    before = bits(pipe.unet)
    wide = {VALUE: channels.channels[VALUE], "mid_block.attentions.0.proj_in": torch.ones(99, dtype=torch.bool)}
    for masks in ({"nowhere": torch.ones(3, dtype=torch.bool)}, wide):
        edit = Edit(masks, {}, channels.fingerprint)
        with pytest.raises(UserError, match="does not fit"):
            edit.apply(wrap(pipe), force=True)
        with pytest.raises(UserError, match="does not fit"), edit.applied(Subject(wrap(pipe))):
            pass
    assert same(bits(pipe.unet), before)


def test_edits_of_one_model_combine(channels, weights):
    """Each keeps its units; masks of one module join; edits of different models do not."""
    more = Edit({VALUE: channels.channels[VALUE].roll(1)}, {}, channels.fingerprint)
    assert (channels | weights | more).selected == 2 + 3 + 2
    assert (channels | channels).selected == 2
    with pytest.raises(UserError, match="different models"):
        _ = channels | Edit({}, {}, "another")


def test_a_random_control_is_of_equal_size_and_elsewhere(pipe, channels, weights):
    """As many in each module, none of the edit's own; another seed, another draw."""
    edit = channels | weights
    control = random_like(edit, pipe.unet, 0)
    assert int(control.channels[VALUE].sum()) == 2
    assert not (control.channels[VALUE] & edit.channels[VALUE]).any()
    assert int(control.weights[FEED].sum()) == 3
    assert not (control.weights[FEED] & edit.weights[FEED]).any()
    assert torch.equal(random_like(edit, pipe.unet, 0).channels[VALUE], control.channels[VALUE])
    assert not torch.equal(random_like(edit, pipe.unet, 1).weights[FEED], control.weights[FEED])


def test_a_random_control_has_weights_of_like_norms(pipe):
    """Of weights of which a tenth is large, an edit of large ones has a control of large ones; so have channels."""
    generator = torch.Generator().manual_seed(0)
    layer, values = pipe.unet.get_submodule(FEED), pipe.unet.get_submodule(VALUE)
    large = torch.rand(layer.weight.shape, generator=generator) < 0.1
    wide = torch.arange(16) < 6
    with torch.no_grad():
        layer.weight.copy_(torch.where(large, 5.0, 0.1) * (1 + 0.1 * torch.rand(large.shape, generator=generator)))
        values.weight.copy_(torch.where(wide[:, None], 5.0, 0.1).expand_as(values.weight))
    some = large & (torch.rand(large.shape, generator=generator) < 0.3)
    edit = Edit({VALUE: torch.arange(16) < 3}, {FEED: some}, "f")
    control = random_like(edit, pipe.unet, 0)
    assert (control.weights[FEED] <= large).all()
    assert control.channels[VALUE].nonzero()[:, 0].tolist() == [3, 4, 5]
    assert removed_norm(control, pipe.unet) == pytest.approx(removed_norm(edit, pipe.unet), rel=0.02)


def test_a_control_that_would_be_the_edit_is_none(pipe):
    """Twelve of sixteen channels leave four others: no control of twelve differs from the edit in more."""
    assert random_like(Edit({VALUE: torch.arange(16) < 12}, {}, "f"), pipe.unet, 0) is None
    assert random_like(Edit({VALUE: torch.ones(16, dtype=torch.bool)}, {}, "f"), pipe.unet, 0) is None
    assert random_like(Edit({VALUE: torch.arange(16) < 8}, {}, "f"), pipe.unet, 0).channels[VALUE][8:].all()


def test_the_norm_of_what_is_removed(pipe, channels, weights):
    """√Σ w² over the zeroed rows and entries, from the weights before and after."""
    names = [f"{VALUE}.weight", f"{FEED}.weight"]
    before = [pipe.unet.get_parameter(name).detach().clone() for name in names]
    edit = channels | weights
    with edit.applied(Subject(wrap(pipe))):
        after = [pipe.unet.get_parameter(name).detach().clone() for name in names]
    total = sum(float((a - b).square().sum()) for a, b in zip(before, after, strict=True)) ** 0.5
    assert removed_norm(edit, pipe.unet) == pytest.approx(total, rel=1e-5)
    with pytest.raises(UserError, match="does not fit"):
        removed_norm(Edit({"nowhere": torch.ones(3, dtype=torch.bool)}, {}, "f"), pipe.unet)


def spoil(path, how):
    beside = path.with_suffix(".json")
    record = json.loads(beside.read_text())
    match how:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-4])
        case "no json":
            beside.unlink()
        case "json of another edit":
            beside.write_text(json.dumps(record | {"sha256": "0" * 64}))
        case "json that is none":
            beside.write_text("{")
        case "json of other fields":
            beside.write_text(json.dumps(record | {"more": 1}))
        case "binary json":
            beside.write_bytes(b"\xff\xfe")
        case _:
            rewrite(path, record, how)


def rewrite(path, record, how):
    """Wrong inside, under a hash that is right."""
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors |= {
        "places out of range": {name: torch.tensor([10**6], dtype=torch.int32)},
        "a negative place": {name: torch.tensor([-1], dtype=torch.int32)},
        "floats": {name: torch.tensor([1.0])},
        "another module": {"channels/x": torch.tensor([1], dtype=torch.int32)},
    }.get(how, {})
    save_file(tensors, path)
    shapes = {"a shape of no mask": {name: [4, 2, 2]}, "a negative shape": {name: [-16]}}.get(how, {})
    text = record | {"shapes": record["shapes"] | shapes, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if how == "no safetensors":
        path.write_bytes(b"nothing")
        text["sha256"] = hashlib.sha256(b"nothing").hexdigest()
    path.with_suffix(".json").write_text(json.dumps(text))


SPOILT = (
    "truncated", "no json", "json of another edit", "json that is none", "json of other fields", "binary json",
    "no safetensors", "places out of range", "a negative place", "floats", "another module", "a shape of no mask",
    "a negative shape",
)  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_edit_is_one_line(channels, tmp_path, how):
    """Whatever is wrong with the two files, nothing is loaded and the line names a file."""
    path = tmp_path / "edit.safetensors"
    channels.save(path)
    spoil(path, how)
    with pytest.raises(UserError, match="edit") as error:
        Edit.load(path)
    assert "\n" not in str(error.value)


def test_shapes_that_claim_gigabytes_take_no_memory(channels, pipe, tmp_path):
    """Forty masks of two gigabytes each: an edit of another model, told as that in no more memory than it needs."""
    places = {f"weights/m{i}": torch.tensor([5], dtype=torch.int32) for i in range(40)}
    save_file(places, tmp_path / "e.safetensors")
    channels.save(tmp_path / "sound.safetensors")
    record = json.loads((tmp_path / "sound.json").read_text())
    hashed = hashlib.sha256((tmp_path / "e.safetensors").read_bytes()).hexdigest()
    shapes = dict.fromkeys(places, (2**16, 2**15))
    (tmp_path / "e.json").write_text(json.dumps(record | {"shapes": shapes, "sha256": hashed}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="edit"):
        Edit.load(tmp_path / "e.safetensors").apply(wrap(pipe), force=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # in kilobytes


def test_names_that_are_none(channels, tmp_path):
    """An edit is saved under .safetensors only, and never over a folder."""
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("edit", "edit.pt", "folder.safetensors"):
        with pytest.raises(UserError, match="not a name for an edit"):
            channels.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.safetensors"]
    with pytest.raises(UserError, match="no such file"):
        Edit.load(tmp_path / "missing.safetensors")
