"""What each family's adapter gives beside pictures: conditions, unconditional prompts, layers, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch

from pipelines import NOISE, tiny
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.hooks import patched
from unmemorize.core.model import Condition, joined
from unmemorize.models.load import wrap

PROMPTS = ["a lighthouse at dusk", "an owl on a fence, and two red kites over a field", ""]
TYPED = ["sd", "sdxl"]
MASKED = ["pixart", "pixart_alpha", "sana"]
CROSS = [*TYPED, *MASKED]
UNPADDED = ["cogview4", "kandinsky5"]
JOINT = ["sd3", "flux", "chroma", "qwen", "z_image", "flux2_klein", "flux2", "lumina2", "aura_flow", *UNPADDED]
ALL = [*CROSS, *JOINT]
FLOWS = [*JOINT, "sana"]
POOLED = ["sdxl", "sd3", "flux", "kandinsky5"]


@pytest.fixture(scope="module")
def models():
    """A model of each family, made when it is asked for."""
    made = {}

    def model(family, **own):
        key = (family, *own.items())
        if key not in made:
            made[key] = wrap(tiny(family, **own), size=(64, 64))
        return made[key]

    return model


def state(model, rows):
    noise = model.noise([torch.Generator().manual_seed(i) for i in range(rows)])
    return noise, model.schedule(4).timesteps[1]


def close(a, b):
    return torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))  # rounding of float32: 2e-5 on some processors


@pytest.mark.parametrize("family", ALL)
def test_rows_of_conditions_mean_the_same_wherever_they_stand(models, family):
    """A row that is taken, repeated or joined with others predicts what it predicts alone."""
    model = models(family)
    cond = model.encode(PROMPTS)
    other = joined([model.encode(PROMPTS[1:2]), model.unconditional(1), cond[:1].repeat(2)])
    x, t = state(model, 1)
    with torch.no_grad():
        alone = [model.predict(x, t, model.encode([prompt])).output for prompt in PROMPTS]
        empty = model.predict(x, t, model.unconditional(1)).output
        together = model.predict(x.expand(3, -1, -1, -1), t, cond).output
        mixed = model.predict(x.expand(4, -1, -1, -1), t, other).output
    assert close(together, torch.cat(alone))
    assert close(mixed, torch.cat([alone[1], empty, alone[0], alone[0]]))
    assert not close(alone[0], alone[1])
    assert cond.texts == tuple(PROMPTS)


@pytest.mark.parametrize("family", ALL)
def test_every_row_may_have_its_own_timestep(models, family):
    """Two rows at two timesteps predict what each predicts alone."""
    model = models(family)
    x, _ = state(model, 2)
    t = model.timestep(torch.tensor([0.3, 0.8]))
    cond = model.encode(PROMPTS[:2])
    with torch.no_grad():
        both = model.predict(x, t, cond).output
        apart = [model.predict(x[i : i + 1], t[i], cond[[i]]).output for i in range(2)]
    assert close(both, torch.cat(apart))
    assert not close(both[:1], model.predict(x[:1], t[1], cond[[0]]).output.detach())


@pytest.mark.parametrize("family", ALL)
def test_spans_are_of_the_tokens_that_are_encoded(models, family):
    """There is a span a position; those of a word cover its letters, wherever it stands."""
    model = models(family)
    prompt = "  an owl on a fence, two red kites"
    spans = model.spans(prompt)
    assert len(spans) == model.encode([prompt]).embeds.shape[1]
    for word in ("owl", "fence", "kites"):
        start = prompt.index(word)
        inside = [prompt[a:b] for a, b in spans if start <= a < b <= start + len(word)]
        assert word in "".join(inside), (word, inside)
    assert all(prompt[a:b].strip() == prompt[a:b] for a, b in spans)


@pytest.mark.parametrize("family", POOLED)
def test_a_bare_embedding_is_given_the_empty_prompts_pooled_vector(models, family):
    """Embeddings without a pooled vector predict as with that of the empty prompt."""
    model = models(family)
    cond, empty = model.encode(PROMPTS[:1]), model.encode([""])
    x, t = state(model, 1)
    with torch.no_grad():
        bare = model.predict(x, t, replace(cond, pooled=None)).output
        given = model.predict(x, t, replace(cond, pooled=empty.pooled)).output
        own = model.predict(x, t, cond).output
    assert torch.equal(bare, given)
    assert not close(bare, own)


@pytest.mark.parametrize("family", TYPED)
def test_typed_tokens_encode_as_the_prompt(models, family):
    """`encode_tokens` of the table's rows is `encode`, bit for bit, with gradients to the rows."""
    model = models(family)
    cond = model.encode(PROMPTS)
    inputs = model.token_table[cond.ids].requires_grad_()
    found = model.encode_tokens(cond.ids, inputs)
    assert torch.equal(found.embeds, cond.embeds)
    assert (found.pooled is None) == (cond.pooled is None)
    assert cond.pooled is None or torch.equal(found.pooled, cond.pooled)
    (gradient,) = torch.autograd.grad(found.embeds.square().sum(), inputs)
    assert (gradient[0, :5].abs().sum(1) > 0).all()
    assert "lighthouse" in model.vocabulary


@pytest.mark.parametrize("family", CROSS)
def test_text_projections_read_the_text_alone(models, family):
    """What each value projection is given in a prediction is `text_inputs`, whatever the noise."""
    model = models(family)
    cond = model.encode(PROMPTS[:2])
    layers = model.text_projections()
    x, t = state(model, 2)
    seen = {}
    for name in layers:
        seen[name] = []
    handles = [m.register_forward_pre_hook(lambda _, given, n=n: seen[n].append(given[0])) for n, m in layers.items()]
    with torch.no_grad():
        model.predict(x, t, cond)
        expected = model.text_inputs(cond)
    for handle in handles:
        handle.remove()
    assert layers
    for given in seen.values():
        assert torch.equal(given[0], expected)
    assert set(model.text_projections("down-mid")) < set(layers)


@pytest.mark.parametrize("family", [family for family in ALL if family != "sana"])
def test_blocking_a_feed_forward_moves_the_prediction(models, family):
    """Every layer that is named takes part: without its output the prediction is another."""
    model = models(family)
    x, t = state(model, 1)
    cond = model.encode(PROMPTS[:1])
    layers = model.feed_forwards()
    assert layers
    with torch.no_grad():
        free = model.predict(x, t, cond).output
        for name in layers:
            with patched(model.denoiser, {name: torch.zeros_like}):
                assert not torch.equal(model.predict(x, t, cond).output, free), name


@pytest.mark.parametrize("family", ALL)
def test_attention_layers_are_all_of_attention(models, family):
    """Every linear layer inside a module that diffusers calls an attention, of the picture's stream and the text's."""
    model = models(family)
    expected = set()
    for name, module in model.denoiser.named_modules():
        if type(module).__name__.endswith("Attention"):
            linear = {inner for inner, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
            expected |= {f"{name}.{inner}" for inner in linear if inner}
    assert set(model.attention_layers()) == expected != set()


@pytest.mark.parametrize("family", ALL)
def test_invert_is_the_inverse_of_the_vaes_scale(models, family):
    """A latent that is brought into the VAE's scale and back is itself."""
    model = models(family)
    x, _ = state(model, 2)
    assert torch.allclose(model._scaled(model._unscaled(x)), x, atol=1e-5)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model.invert(images).shape == x.shape


@pytest.mark.parametrize("family", ALL)
def test_the_fingerprint_covers_every_network(models, family):
    """One changed number of any network of the pipeline is another fingerprint."""
    pipe = tiny(family)
    model = wrap(pipe)
    before = model.fingerprint
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert len(networks) >= 3
    for network in networks:
        weights = next(network.parameters()).data.view(-1)
        old = weights[0].clone()
        weights[0] += 1
        assert model.fingerprint != before
        weights[0] = old
    assert model.fingerprint == before


@pytest.mark.parametrize("family", ALL)
def test_a_size_that_cannot_be_made_is_refused(family):
    """Pictures whose sides are no multiple of what the network needs are one line."""
    with pytest.raises(UserError, match="60 × 64 pixels: name multiples of"):
        wrap(tiny(family), size=(60, 64))


@pytest.mark.parametrize("family", FLOWS)
def test_a_timestep_stands_for_the_schedulers_noise_level(models, family):
    """σ at every timestep is what the scheduler steps with, and a level's timestep is of that level."""
    model = models(family)
    schedule = model.schedule(7)
    _, sigma = model.alpha_sigma(schedule.timesteps)
    expected = schedule._scheduler.sigmas[:7].double()
    assert torch.allclose(sigma.flatten(), expected, atol=1e-3 if family == "sana" else 1e-6)  # it rounds timesteps
    u = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(model.alpha_sigma(model.timestep(u))[1].flatten(), u.double(), atol=1e-6)


@pytest.mark.parametrize("family", UNPADDED)
def test_prompts_of_different_lengths_are_evaluated_apart(models, family):
    """The network is called once for each length, and is given no padding."""
    model = models(family)
    x, t = state(model, 1)
    cond = model.encode(PROMPTS)
    texts = []
    handle = model.denoiser.register_forward_pre_hook(
        lambda module, given, named: texts.append(named["encoder_hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model.predict(x.expand(3, -1, -1, -1), t, cond)
    handle.remove()
    lengths = cond.mask.sum(1)
    assert len(lengths.unique()) > 1
    assert [text.shape[1] for text in texts] == lengths.unique().tolist()
    assert sum(len(text) for text in texts) == 3


@pytest.mark.parametrize("family", ["flux", "flux2"])
def test_distilled_guidance_is_an_input(models, family):
    """Another embedded guidance is another output."""
    model = models(family)
    x, t = state(model, 1)
    cond = model.encode(PROMPTS[:1])
    usual = type(model).embedded
    with torch.no_grad():
        before = model.predict(x, t, cond).output
        model.embedded = 1.0
        try:
            assert not close(model.predict(x, t, cond).output, before)
        finally:
            model.embedded = usual


def test_flux_has_the_defaults_of_dev_and_of_schnell(models):
    """Neither is guided by two evaluations; schnell takes four steps."""
    dev, schnell = models("flux"), models("flux", distilled=False)
    assert (dev.guidance, dev.steps, schnell.guidance, schnell.steps) == (1.0, 28, 1.0, 4)


def test_a_distilled_flux2_is_not_guided():
    """It takes four steps of one evaluation."""
    model = wrap(tiny("flux2_klein", distilled=True))
    assert (model.guidance, model.steps) == (1.0, 4)


def test_sanas_feed_forwards_are_convolutions(models):
    """They are *not applicable*, with the reason."""
    with pytest.raises(NotApplicable, match="convolutions"):
        models("sana").feed_forwards()


def test_sana_moves_away_from_the_empty_prompt_without_its_instruction(models):
    """The instruction stands before every prompt, the empty one, too; not before what guidance moves away from."""
    model = models("sana")
    away, empty = model.unconditional(1), model.encode([""])
    assert away.embeds.shape == empty.embeds.shape
    assert (away.mask.sum(), empty.mask.sum()) == (1, 2)
    assert not close(away.embeds[:, :2], empty.embeds[:, :2])


def test_sdxl_moves_away_from_zeros_as_its_pipeline_does(models):
    """Where the pipeline is set so the unconditional embedding and pooled vector are zero, else the empty prompt's."""
    zeros = models("sdxl").unconditional(2)
    assert not zeros.embeds.any()
    assert not zeros.pooled.any()
    other = models("sdxl", zeros=False)
    assert torch.equal(other.unconditional(1).embeds, other.encode([""]).embeds)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"), (5.0, 50)),
        (diffusers.EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing"), (1.0, 4)),
        (diffusers.LCMScheduler(**NOISE), (1.0, 4)),
        (diffusers.TCDScheduler(**NOISE), (1.0, 4)),
    ],
)
def test_few_step_schedulers_bring_their_own_defaults(scheduler, expected):
    """Turbo, Lightning and LCM are sampled in four steps without guidance unless something else is asked for."""
    model = wrap(tiny("sdxl", scheduler=scheduler))
    assert (model.guidance, model.steps) == expected


REFUSED = {
    "flow": (
        {"scheduler": diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")},
        "sample a flow",
    ),
    "edm": ({"scheduler": diffusers.EDMEulerScheduler()}, "no variance-preserving"),
    "inpainting": ({"in_channels": 9}, "more or other inputs"),
    "lcm": ({"time_cond_proj_dim": 8}, "guidance-distilled"),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_what_a_unet_adapter_does_not_know_is_refused(family, what):
    """Networks and schedulers that need something else are *not applicable*, with the reason."""
    own, reason = REFUSED[what]
    with pytest.raises(NotApplicable, match=reason):
        wrap(tiny(family, **own))


@pytest.mark.parametrize("family", JOINT)
def test_joint_attention_has_no_layer_that_reads_the_text_alone(models, family):
    """Nor token inputs to search a typed prompt through: both are *not applicable*, with the reason."""
    model = models(family)
    cond = model.encode([""])
    for ask in (model.text_projections, lambda: model.text_inputs(cond)):
        with pytest.raises(NotApplicable, match="no layer reads the text alone"):
            ask()


@pytest.mark.parametrize("family", [*MASKED, *JOINT])
def test_a_typed_prompt_is_searched_through_clip_alone(models, family):
    """Token inputs of other text encoders are *not applicable*, with the reason."""
    model = models(family)
    for ask in (lambda: model.vocabulary, lambda: model.token_table, lambda: model.encode_tokens(None, None)):
        with pytest.raises(NotApplicable, match="other encoders than CLIP"):
            ask()


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (diffusers.FlowMatchLCMScheduler(), "adds noise that no seed fixes"),
        (diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "adds noise that no seed fixes"),
        (diffusers.DDIMScheduler(), "does not sample a flow"),
    ],
)
@pytest.mark.parametrize("family", FLOWS)
def test_schedulers_that_no_seed_fixes_are_refused(family, scheduler, reason):
    """A flow pipeline passes no generator on: with such a scheduler it does not equal itself."""
    with pytest.raises(NotApplicable, match=reason):
        wrap(tiny(family, scheduler=scheduler))


def test_an_ip_adapter_is_refused():
    """A UNet that also reads pictures says how to be rid of them."""
    pipe = tiny("sd")
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(NotApplicable, match="unload_ip_adapter"):
        wrap(pipe)


def test_a_pipeline_with_a_call_of_its_own_is_refused():
    """A subclass may compute something else: it says how to pass its parts on."""

    class Community(diffusers.StableDiffusionXLPipeline):
        pass

    pipe = tiny("sdxl")
    with pytest.raises(NotApplicable, match=r"StableDiffusionXLPipeline\(\*\*pipe.components\)"):
        wrap(Community(**pipe.components))


def test_a_condition_of_embeddings_alone_is_enough(models):
    """Bare embeddings predict; what a family reads beside them is filled in."""
    for family in ALL:
        model = models(family)
        x, t = state(model, 1)
        with torch.no_grad():
            assert model.predict(x, t, Condition(model.encode([""]).embeds)).output.isfinite().all()
