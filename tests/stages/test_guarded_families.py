"""The guard before plain pipelines of every family: their own pictures, or those of the guard in our own loop."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.stats
import torch
from peft import LoraConfig

from pipelines import tiny
from unmemorize import guard
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject
from unmemorize.core.sample import Sampler, generate, generators
from unmemorize.mitigate.guard import Guard as OnOwnLoop
from unmemorize.mitigate.guard import Limits, magnitudes
from unmemorize.models.load import wrap

PROMPTS = ["a lighthouse at dusk", "an owl on a fence, and two red kites over a field"]
SEEDS, STEPS = [3, 4], 2
NEVER, ALWAYS = Limits(threshold=1e9, target=1.0), Limits(threshold=0.0, target=0.0)
# How each is called, its guidance in our own loop, and what an ordinary call costs beyond the pipeline's own.
FAMILIES = {
    "sdxl": ({"guidance_scale": 5.0}, 5.0, 0),
    "sd3": ({"guidance_scale": 7.0}, 7.0, 0),
    "flux": ({"true_cfg_scale": 4.0, "negative_prompt": ""}, 4.0, 2),
    "chroma": ({"guidance_scale": 5.0}, 5.0, 2),
    "aura_flow": ({"guidance_scale": 3.5}, 3.5, 0),
    "pixart": ({"guidance_scale": 4.5, "use_resolution_binning": False}, 4.5, 0),
    "sana": ({"guidance_scale": 4.5, "use_resolution_binning": False}, 4.5, 0),
    "qwen": ({"true_cfg_scale": 4.0, "negative_prompt": ""}, 4.0, 2),
    "flux2_klein": ({"guidance_scale": 4.0}, 4.0, 2),
    "lumina2": ({"guidance_scale": 4.0}, 4.0, 2),
}
TWO = ["the old harbour"] * 2
OTHER = {
    "sdxl without guidance": ("sdxl", {"guidance_scale": 1.0}),
    "sdxl under a negative prompt": ("sdxl", {"negative_prompt": TWO}),
    "sdxl of another size": ("sdxl", {"width": 96, "original_size": (32, 32)}),
    "sdxl, two pictures a prompt": ("sdxl", {"num_images_per_prompt": 2}),
    "sd3 without guidance": ("sd3", {"guidance_scale": 1.0}),
    "sd3 under a negative prompt": ("sd3", {"negative_prompt": TWO}),
    "flux under a negative prompt": ("flux", {"true_cfg_scale": 4.0, "negative_prompt": TWO}),
    "pixart without guidance": ("pixart", {"guidance_scale": 1.0}),
    "pixart under a negative prompt": ("pixart", {"negative_prompt": TWO}),
}


@functools.cache
def pipe_of(family):
    return tiny(family)


@functools.cache
def model_of(family):
    return wrap(pipe_of(family), size=(64, 64))


def call(pipe, **named):
    streams = generators(range(3, 3 + len(PROMPTS) * named.get("num_images_per_prompt", 1)))
    given = {"num_inference_steps": STEPS, "output_type": "np", "generator": streams, "height": 64, "width": 64}
    return pipe(**{"prompt": list(PROMPTS)} | given | named).images


def subject_of(family):
    return Subject(model_of(family), Sampler(STEPS, FAMILIES[family][1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_guard_knows_every_familys_calls(family):
    """Ordinary pictures are the pipeline's own, scores those of our own loop; one over the threshold is lowered alike.

    Only the second picture is over the threshold: the first is the pipeline's own beside it, too.
    """
    named, _, cost = FAMILIES[family]
    plain = call(pipe_of(family), **named)
    watched = guard(pipe_of(family), limits=NEVER)
    assert np.array_equal(call(watched, **named), plain)
    assert watched.outcome.evaluations == cost
    cond = model_of(family).encode(PROMPTS)
    scores = torch.tensor(magnitudes(subject_of(family), cond, SEEDS))
    assert watched.outcome.before == pytest.approx(scores.tolist(), rel=1e-4)
    over, other = int(scores.argmax()), int(scores.argmin())
    limits = Limits(scores.mean().item(), 0.5 * scores.max().item())
    guarded = guard(pipe_of(family), limits=limits, iterations=3)
    pictures = call(guarded, **named)
    assert guarded.outcome.acted == tuple(row == over for row in range(2))
    assert guarded.outcome.after[over] != guarded.outcome.before[over]
    own = OnOwnLoop(threshold=limits.threshold, target=limits.target, iterations=3)
    with own.applied(subject_of(family)) as subject:
        expected = generate(subject.model, cond, seeds=SEEDS, sampler=subject.sampler)
    assert np.allclose(pictures, expected.permute(0, 2, 3, 1).float().numpy(), atol=2e-3)
    assert np.allclose(pictures[other], plain[other], atol=1e-6)
    assert not np.allclose(pictures[over], plain[over], atol=2e-3)


@pytest.mark.parametrize(("family", "named"), OTHER.values(), ids=OTHER)
def test_whatever_is_asked_for(family, named):
    """Ordinary pictures are the pipeline's own bytes, at one evaluation more a picture; others change."""
    named = FAMILIES[family][0] | named
    plain = call(pipe_of(family), **named)
    watched = guard(pipe_of(family), limits=NEVER)
    assert np.array_equal(call(watched, **named), plain)
    alone = named.get("num_images_per_prompt", 1) == 2 or "width" in named
    assert watched.outcome.evaluations == (0 if alone else 2)
    guarded = guard(pipe_of(family), limits=ALWAYS, iterations=1)
    assert not np.array_equal(call(guarded, **named), plain)
    assert all(guarded.outcome.acted)
    assert guarded.outcome.before == pytest.approx(watched.outcome.before, rel=1e-5)


def test_ordinary_prompts_are_scored_in_calls_like_those_they_calibrate():
    """Of SDXL with its pooled vectors and sizes: the limits are those of our own loop, and others for another size."""
    ordinary = [f"an owl number {i}" for i in range(20)]
    guarded = guard(pipe_of("sdxl"), ordinary=ordinary, false_alarms=0.05)
    call(guarded, **FAMILIES["sdxl"][0])
    first = guarded.outcome.limits
    subject = subject_of("sdxl")
    by_hand = magnitudes(subject, model_of("sdxl").encode(ordinary), range(20))
    assert first.threshold == pytest.approx(max(by_hand), rel=1e-3)
    assert first.target == pytest.approx(np.quantile(by_hand, 0.05), rel=1e-3)
    call(guarded, original_size=(32, 32), **FAMILIES["sdxl"][0])
    assert guarded.outcome.limits != first
    call(guarded, **FAMILIES["sdxl"][0])
    assert guarded.outcome.limits == first


def test_false_alarms_on_a_model_that_no_limits_were_made_on():
    """Fresh ordinary prompts are acted on as often as promised, on random weights: 1 in 20, within its error."""
    texts = [f"{kind} {thing} number {i}" for i in range(10) for kind in "abcdef" for thing in ("owl", "kite", "fence")]
    ordinary, fresh = texts[:80], texts[80:180]
    guarded = guard(pipe_of("sdxl"), ordinary=ordinary, false_alarms=0.05)
    acted = []
    for start in range(0, len(fresh), 20):
        prompts, streams = fresh[start : start + 20], generators(range(1000 + start, 1020 + start))
        named = {"num_inference_steps": 1, "output_type": "latent", "height": 64, "width": 64}
        guarded(prompt=prompts, generator=streams, **named)
        acted += guarded.outcome.acted
    # The threshold is itself a draw: the share has a beta-binomial law, whose 99.9% quantile is 19 of 100.
    assert sum(acted) <= scipy.stats.betabinom(100, 4, 77).ppf(0.999)


def test_without_ordinary_prompts_nothing_is_promised():
    """What is ordinary for a model is not known: the guard does not act on a guess, and says what it needs."""
    with pytest.raises(UserError, match=r"ordinary=\[…\], prompts like those you serve \(99 or more"):
        guard(pipe_of("sd3"))


def test_guidance_that_is_built_in_is_not_applicable():
    """Flux dev has no unconditional branch unless it is asked for; the distilled klein never has."""
    for family, named in (("flux", {}), ("flux", {"true_cfg_scale": 4.0}), ("flux2_klein", {})):
        pipe = tiny("flux2_klein", distilled=True) if family == "flux2_klein" else pipe_of(family)
        with pytest.raises(NotApplicable, match="guidance built in"):
            call(guard(pipe, limits=NEVER), **named)


@pytest.mark.parametrize("family", ["z_image", "cogview4", "kandinsky5"])
def test_calls_without_rows_are_refused(family):
    """Lists, and prompts that are padded together, say what to use instead."""
    with pytest.raises(NotApplicable, match="generate --mitigation guard"):
        guard(tiny(family), limits=NEVER)


UNSEEN = {
    "ip_adapter_image_embeds": ("sdxl", {"ip_adapter_image_embeds": [torch.zeros(1)]}),
    "clip_skip": ("sdxl", {"clip_skip": 1}),
    "negative_target_size": ("sdxl", {"negative_target_size": (32, 32)}),
    r"cross_attention_kwargs\['gligen'\]": ("sdxl", {"cross_attention_kwargs": {"gligen": {}}}),
    "callback_on_step_end_tensor_inputs: prompt_embeds": (
        "sdxl",
        {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]},
    ),
    "skip_guidance_layers": ("sd3", {"skip_guidance_layers": [0]}),
    "max_sequence_length": ("flux", {"max_sequence_length": 256} | FAMILIES["flux"][0]),
    "clean_caption": ("pixart", {"clean_caption": False}),
    "complex_human_instruction": ("sana", {"complex_human_instruction": ["say it in verse: "]}),
    "strength": ("pixart", {"strength": 0.5}),
}


@pytest.mark.parametrize(("name", "asked"), UNSEEN.items(), ids=UNSEEN)
def test_what_it_cannot_see_is_refused_by_name(name, asked):
    """Arguments that change predictions, or how prompts are read, behind its back; their defaults are none."""
    family, named = asked
    with pytest.raises(UserError, match=f"^{name}.*: the guard cannot see"):
        call(guard(pipe_of(family), limits=NEVER), **named)


def test_a_compiled_denoiser_is_guarded_and_one_compiled_in_place_refused():
    """By torch.compile the hooks lie outside; in place they would be ignored, without a word."""
    pipe = tiny("sdxl")
    plain = call(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    watched = guard(pipe, limits=NEVER)
    assert np.allclose(call(watched), plain, atol=1e-5)
    guarded = guard(pipe, limits=ALWAYS, iterations=1)
    assert not np.allclose(call(guarded), plain, atol=1e-4)
    pipe = tiny("sdxl")
    pipe.unet.compile(backend="eager")
    with pytest.raises(NotApplicable, match=r"pipe\.unet = torch\.compile\(pipe\.unet\)"):
        guard(pipe, limits=NEVER)


def test_the_scale_of_a_lora_reaches_the_guards_own_evaluations():
    """The magnitude is that of the network at that scale; of a LoRA that a text encoder reads it is refused."""
    pipe = tiny("sdxl")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False))
    pipe.unet.set_adapters("default", 1.0)
    scores = {}
    for scale in (0.0, 1.0):
        named = {"negative_prompt": TWO, "cross_attention_kwargs": {"scale": scale}}
        plain = call(pipe, **named)
        watched = guard(pipe, limits=NEVER)
        assert np.array_equal(call(watched, **named), plain)
        scores[scale] = watched.outcome.before
    pipe.unet.delete_adapters("default")
    assert scores[0.0] == pytest.approx(
        magnitudes(subject_of("sdxl"), model_of("sdxl").encode(PROMPTS), SEEDS), rel=1e-4
    )
    assert scores[1.0] != pytest.approx(scores[0.0], rel=1e-3)
    pipe.text_encoder_2.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UserError, match="LoRA on a text encoder"):
        call(guard(pipe, limits=NEVER), cross_attention_kwargs={"scale": 0.5})


def test_offloaded_weights_are_guarded():
    """Moved in before each call of a network and out behind it: the same pictures, and the same scores."""
    pipe = tiny("sdxl")
    guarded = guard(pipe, limits=ALWAYS, iterations=1)
    expected = call(guarded)
    scores = guarded.outcome
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level")
    again = guard(pipe, limits=ALWAYS, iterations=1)
    assert np.allclose(call(again), expected, atol=1e-5)
    assert again.outcome.after == pytest.approx(scores.after, rel=1e-4)


def test_inference_mode_is_refused():
    """Embeddings are moved along gradients."""
    with torch.inference_mode(), pytest.raises(UserError, match=r"torch\.no_grad"):
        call(guard(pipe_of("sdxl"), limits=NEVER))
