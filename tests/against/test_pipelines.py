"""Our sampling loop is each family's own pipeline, bit for bit."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch

from pipelines import NOISE, tiny
from unmemorize.core.sample import Sampler, generators, trajectory
from unmemorize.models.load import wrap

PROMPTS = ["a lighthouse at dusk", "an owl on a fence, and two red kites over a field", "x"]
ALIKE = ["an owl on a fence", "a fence on a field", "a field on a fence"]  # of as many tokens
SEEDS = [3, 14, 2**40]
STEPS = 3


@dataclass(frozen=True)
class Case:
    """A pipeline and how it is called: `guidance` is ours, `call` the pipeline's arguments, `own` the factory's."""

    family: str
    guidance: float
    call: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (64, 64)
    scheduler: Any = None
    dtype: torch.dtype = torch.float32
    prompts: list[str] = field(default_factory=lambda: PROMPTS)

    def __str__(self):
        scheduler = "" if self.scheduler is None else type(self.scheduler).__name__.removesuffix("Scheduler")
        parts = [self.family, self.guidance, *self.own.items(), *self.size, scheduler, str(self.dtype)[6:]]
        return " ".join(str(part) for part in parts if part != "")


def cfg(family, guidance, **how):
    return Case(family, guidance, {"guidance_scale": guidance}, **how)


def flux(true_guidance, **how):
    negative = {"true_cfg_scale": true_guidance, "negative_prompt": ""} if true_guidance > 1 else {}
    return Case("flux", true_guidance, {"guidance_scale": 3.5, **negative}, **how)


def unpadded(family, guidance, **how):
    """In these pipelines prompts of different lengths change each other's pictures; in our loop they do not."""
    return cfg(family, guidance, prompts=ALIKE, **how)


def binned(family, guidance, **how):
    """These pipelines make other sizes than the one asked for, and scale the pictures, unless told not to."""
    return Case(family, guidance, {"guidance_scale": guidance, "use_resolution_binning": False}, **how)


ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
CASES = [
    cfg("sd", 7.5),
    cfg("sdxl", 1.0),
    cfg("sdxl", 5.0),
    cfg("sdxl", 5.0, own={"zeros": False}),
    cfg("sdxl", 5.0, own={"first": False}),
    cfg("sdxl", 5.0, size=(64, 96)),
    cfg("sdxl", 5.0, dtype=torch.float16),
    *(
        cfg("sdxl", 5.0, scheduler=scheduler)
        for scheduler in (
            diffusers.DDIMScheduler(**NOISE, clip_sample=False),
            diffusers.EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing"),
            diffusers.EulerDiscreteScheduler(**NOISE, **ZERO_SNR),
            diffusers.DPMSolverMultistepScheduler(**NOISE),
            diffusers.LCMScheduler(**NOISE),
            diffusers.TCDScheduler(**NOISE),
        )
    ),
    cfg("sd3", 1.0),
    cfg("sd3", 7.0),
    cfg("sd3", 7.0, own={"t5": False}),
    cfg("sd3", 7.0, own={"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}),
    cfg("sd3", 7.0, size=(64, 96)),
    cfg("sd3", 7.0, dtype=torch.bfloat16),
    *(
        cfg("sd3", 7.0, scheduler=scheduler)
        for scheduler in (
            diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
            diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        )
    ),
    flux(1.0),
    flux(4.0),
    flux(1.0, own={"distilled": False}),
    flux(1.0, size=(64, 96)),
    flux(4.0, dtype=torch.bfloat16),
    flux(1.0, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True)),
    cfg("chroma", 1.0),
    cfg("chroma", 5.0),
    cfg("chroma", 5.0, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
    binned("pixart", 1.0),
    binned("pixart", 4.5),
    binned("pixart", 4.5, size=(64, 96)),
    binned("pixart", 4.5, scheduler=diffusers.DDIMScheduler(clip_sample=False)),
    binned("pixart_alpha", 1.0),
    binned("pixart_alpha", 4.5),
    binned("pixart_alpha", 4.5, own={"sample_size": 128}),
    binned("sana", 1.0),
    binned("sana", 4.5),
    binned("sana", 4.5, dtype=torch.bfloat16),
    binned("sana", 4.5, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
    Case("qwen", 1.0, {"true_cfg_scale": 1.0}),
    Case("qwen", 4.0, {"true_cfg_scale": 4.0, "negative_prompt": ""}),
    Case("qwen", 4.0, {"true_cfg_scale": 4.0, "negative_prompt": ""}, size=(64, 96)),
    Case("z_image", 1.0, {"guidance_scale": 0.0}),
    Case("z_image", 6.0, {"guidance_scale": 5.0}),
    Case("z_image", 6.0, {"guidance_scale": 5.0}, size=(64, 96)),
    cfg("flux2_klein", 1.0),
    cfg("flux2_klein", 4.0),
    Case("flux2_klein", 1.0, own={"distilled": True}),
    cfg("flux2_klein", 4.0, size=(64, 96)),
    Case("flux2", 1.0, {"guidance_scale": 4.0}),
    Case("flux2", 1.0, {"guidance_scale": 4.0}, size=(64, 96)),
    cfg("aura_flow", 1.0),
    cfg("aura_flow", 3.5),
    cfg("aura_flow", 3.5, size=(64, 96)),
    cfg("aura_flow", 3.5, dtype=torch.float16),
    unpadded("cogview4", 1.0),
    unpadded("cogview4", 5.0),
    unpadded("cogview4", 5.0, size=(64, 96)),
    unpadded("cogview4", 5.0, dtype=torch.bfloat16),
    unpadded("kandinsky5", 1.0),
    unpadded("kandinsky5", 3.5),
    unpadded("kandinsky5", 3.5, size=(64, 96)),
    cfg("lumina2", 1.0),
    cfg("lumina2", 4.0),
    cfg("lumina2", 4.0, size=(64, 96)),
]


def run_pipe(pipe, batch, case):
    """The pipeline's state after every step, and its pictures."""
    states = []
    own = type(pipe.scheduler).step

    @functools.wraps(own)  # or the pipeline does not see that it takes a generator
    def step(self, *arguments, **named):
        found = own(self, *arguments, **named)
        states.append(found[0].clone())
        return found

    call = dict(case.call)
    if "negative_prompt" in call:
        call["negative_prompt"] = [call["negative_prompt"]] * batch
    height, width = case.size
    try:
        type(pipe.scheduler).step = step
        output = pipe(
            prompt=case.prompts[:batch],
            num_inference_steps=STEPS,
            generator=generators(SEEDS[:batch]),
            output_type="pt",
            height=height,
            width=width,
            **call,
            return_dict=False,
        )
    finally:
        type(pipe.scheduler).step = own
    return states, output[0]


def unpacked(state, like):
    """As (n, c, h, w): tokens of 2 × 2 latents, tokens of as many channels as there are, frames with channels last."""
    if state.ndim == like.ndim:
        return state
    if state.ndim == 5:
        return state[:, 0].permute(0, 3, 1, 2)
    n, c, h, w = like.shape
    if state.shape[-1] == c:
        return state.transpose(1, 2).reshape(n, c, h, w)
    return state.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_state_and_picture_is_the_pipelines(case, batch):
    """Three steps and the decoded pictures, to the last bit; every row the denoiser saw is counted."""
    pipe = tiny(case.family, scheduler=case.scheduler, **case.own).to(case.dtype)
    states, pictures = run_pipe(pipe, batch, case)
    model = wrap(pipe, size=case.size)
    rows = []
    handle = model.denoiser.register_forward_hook(lambda module, inputs, output: rows.append(len(output[0])))
    try:
        with model.counted() as cost:
            cond = model.encode(case.prompts[:batch])
            path = list(trajectory(model, cond, seeds=SEEDS[:batch], sampler=Sampler(STEPS, case.guidance)))
            with torch.no_grad():
                images = model.decode(path[-1].x_next)
    finally:
        handle.remove()
    assert torch.isfinite(states[-1]).all()
    assert len(path) == len(states)
    for step, state in zip(path, states, strict=True):
        assert torch.equal(unpacked(state, step.x_next), step.x_next)
    assert torch.equal(images, pictures)
    assert cost.forward == sum(rows) > 0
    assert images.shape[-2:] == model.image_size == case.size
    if batch > 1:
        assert not torch.equal(images[0], images[1])
