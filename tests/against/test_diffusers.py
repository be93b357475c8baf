"""What the adapter computes is what diffusers computes."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

from unmemorize.core.sample import Sampler, generate, generators, trajectory
from unmemorize.models.load import wrap

PROMPTS = ["a lighthouse at dusk", "", "an owl on a fence, gadget", "a green bicycle"]
SEEDS = [3, 14, 15, 2**40]
SCHEDULERS = {
    "DDIMScheduler": {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "PNDMScheduler": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "HeunDiscreteScheduler": {},
}


def with_scheduler(pipe, name="DDIMScheduler", kind="epsilon", **options):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": kind}
    scheduler = getattr(diffusers, name)(**config | SCHEDULERS[name] | options)
    other = StableDiffusionPipeline(**pipe.components | {"scheduler": scheduler}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def run_pipe(pipe, batch, guidance, output_type, steps=4):
    return pipe(
        PROMPTS[:batch],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators(SEEDS[:batch]),
        output_type=output_type,
    ).images


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_trajectory_equals_the_pipeline_bit_for_bit(tiny_pipe, name, kind, guidance, batch):
    """The last latent of `trajectory` is the pipeline's own, to the last bit."""
    pipe = with_scheduler(tiny_pipe, name, kind)
    expected = run_pipe(pipe, batch, guidance, "latent")
    model = wrap(pipe)
    cond = model.encode(PROMPTS[:batch])
    *_, last = trajectory(model, cond, seeds=SEEDS[:batch], sampler=Sampler(4, guidance))
    assert torch.isfinite(expected).all()
    assert torch.equal(last.x_next, expected)


@pytest.mark.parametrize(
    ("name", "kind"), [("DDIMScheduler", "epsilon"), ("EulerAncestralDiscreteScheduler", "v_prediction")]
)
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_generate_equals_the_pipelines_pictures_bit_for_bit(tiny_pipe, name, kind, guidance):
    """`generate` decodes to the very pixels the pipeline returns."""
    pipe = with_scheduler(tiny_pipe, name, kind)
    model = wrap(pipe)
    images = generate(model, model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(4, guidance))
    assert images.shape == (4, 3, *model.image_size)
    assert torch.equal(images, run_pipe(pipe, 4, guidance, "pt"))


def test_another_seed_or_prompt_gives_another_picture(tiny_pipe):
    """The equality above is no accident of a model that ignores what it is given."""
    model = wrap(with_scheduler(tiny_pipe))
    cond = model.encode([PROMPTS[0], PROMPTS[0], PROMPTS[2]])
    *_, last = trajectory(model, cond, seeds=[3, 4, 3], sampler=Sampler(4))
    assert not torch.equal(last.x_next[0], last.x_next[1])
    assert not torch.equal(last.x_next[0], last.x_next[2])


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_predicted_noise_and_picture_are_the_schedulers(tiny_pipe, kind):
    """`Prediction.x0` is DDIM's predicted original sample, and `Prediction.eps` steps to the same next state."""
    model = wrap(with_scheduler(tiny_pipe, kind=kind))
    scheduler = model.pipe.scheduler
    scheduler.set_timesteps(10)
    alphas = scheduler.alphas_cumprod.double()
    for step in trajectory(model, model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(10, 1.0)):
        theirs = scheduler.step(step.cond.output, step.t, step.x)
        scale = step.cond.x0.abs().max()
        assert (step.cond.x0 - theirs.pred_original_sample).abs().max() < 1e-5 * scale
        previous = alphas[max(int(step.t) - 100, 0)]
        after = previous.sqrt() * step.cond.x0 + (1 - previous).sqrt() * step.cond.eps
        assert (after - theirs.prev_sample).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_prediction_under_a_sigma_scheduler_is_the_schedulers(tiny_pipe, name):
    """Where the sampler's state is x0 + σ·ε, `Prediction` still decomposes the state the UNet saw."""
    model = wrap(with_scheduler(tiny_pipe, name, "v_prediction"))
    step = next(trajectory(model, model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(6, 1.0)))
    sigma = step.cond.sigma / step.cond.alpha
    rebuilt = step.cond.x0.double() + sigma.double() * step.cond.eps.double()
    assert torch.allclose(rebuilt.float(), step.x, atol=1e-4)
    assert torch.allclose(step.cond.alpha * step.x, step.cond.x, atol=1e-4)


def test_add_noise_is_the_schedulers(tiny_pipe):
    """`add_noise` is the scheduler's forward process, with one timestep per row."""
    model = wrap(with_scheduler(tiny_pipe))
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    t = torch.tensor([0, 1, 250, 998, 999])
    expected = model.pipe.scheduler.add_noise(x0, noise, t)
    assert torch.allclose(model.add_noise(x0, noise, t), expected, atol=2e-6)


def test_invert_is_the_mode_of_the_vae(tiny_pipe):
    """`invert` returns the mode of the VAE's posterior in the UNet's scale."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = wrap(tiny_pipe).invert(images)
        mode = tiny_pipe.vae.encode(images * 2 - 1).latent_dist.mode()
    assert torch.equal(found, mode * tiny_pipe.vae.config.scaling_factor)


def test_encode_is_the_pipelines_encoding(tiny_pipe, tiny_model):
    """Embeddings are `encode_prompt`'s, with token ids and a mask that ends after the first end-of-text token."""
    cond = tiny_model.encode(PROMPTS)
    expected, _ = tiny_pipe.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.equal(cond.embeds, expected)
    words = [len(tiny_pipe.tokenizer(p).input_ids) for p in PROMPTS]
    assert cond.mask.sum(1).tolist() == words
    assert cond.ids[1, 0] == tiny_pipe.tokenizer.bos_token_id


@pytest.mark.parametrize("prompt", ["owl " * 2500, "🦉" * 200, "\u0000\u202e\ud7ff漢字 \n\t"])
def test_any_prompt_is_encoded_as_the_pipeline_encodes_it(tiny_pipe, tiny_model, prompt):
    """Overlong and strange prompts are cut and encoded as the pipeline does, without an error."""
    expected, _ = tiny_pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    cond = tiny_model.encode([prompt])
    assert torch.equal(cond.embeds, expected)
    assert cond.ids.shape == cond.mask.shape == (1, tiny_pipe.tokenizer.model_max_length)


@pytest.mark.parametrize(
    ("name", "guidance"), [("DDIMScheduler", 7.5), ("HeunDiscreteScheduler", 7.5), ("PNDMScheduler", 1.0)]
)
def test_evaluations_count_the_rows_the_unet_saw(tiny_pipe, name, guidance):
    """The evaluation counter is the number of rows that went through the UNet, for every kind of scheduler."""
    model = wrap(with_scheduler(tiny_pipe, name))
    rows = []
    handle = model.denoiser.register_forward_hook(lambda module, inputs, output: rows.append(len(output[0])))
    try:
        with model.counted() as cost:
            generate(model, model.encode(PROMPTS), seeds=SEEDS, sampler=Sampler(3, guidance))
    finally:
        handle.remove()
    assert cost.forward == sum(rows) > 0
