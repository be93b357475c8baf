"""What every method of every kind promises, whichever package it comes from."""

from __future__ import annotations

import dataclasses

import external
import pytest
import torch

from pipelines import tiny
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import (
    GROUPS,
    NEEDS,
    SAMPLING,
    Subject,
    Training,
    describe,
    method,
    methods,
    parse,
    settings,
    spelled,
)
from unmemorize.core.results import Pairs, Surrogates
from unmemorize.core.sample import Sampler, generate
from unmemorize.models.load import wrap

QUICK = {  # settings under which a method takes little time
    "cascade": "cascade:then=two-probe",
    "dsm": "dsm:step=0",
    "nemo": "nemo:threshold=-1,minimum=4.75,seeds=2",
    "nemo-joint": "nemo-joint:threshold=-1,minimum=4.75,seeds=2,refine=false",
    "adaptive": "adaptive:updates=1,sampling=1",
    "prompt-search": "prompt-search:updates=1,tried=2",
    "erase": "erase:updates=1,attack=high-noise:updates=1,ordinary=2,hostile=2",
    "adversarial-finetune": "adversarial-finetune:updates=1,batch=2,attack=dori:updates=1",
    "located": "located:localizer=wanda:sparsity=0.1",
    "wanda": "wanda:sparsity=0.1",
    "guard": "guard:threshold=0,target=0,iterations=1",
    "curvature-map": "curvature-map:probes=1",
    "prompt-reanchoring": "prompt-reanchoring:threshold=0",
    "dissimilarity-guidance": "dissimilarity-guidance:near=1",
    "per-sample-noise": "per-sample-noise:target=0,iterations=1",
    "sail": "sail:target=0,iterations=1,candidates=1",
}
NOT_OF_THE_ORACLE = {
    "letters": "says nothing about memory",
    "condition-jacobian": "the oracle's embedding is a log prior, so large for a prompt that a little less is the same",
    "mid-noise": "after the jump x is next to a picture, which the oracle then predicts without a prompt",
    "anisotropy": "at low noise the oracle goes to the picture nearest to x, which the prompt's is not",
    "attention-entropy": "the oracle has no attention",
    "masked-gap": "the oracle has no attention",
    "edge-agreement": "one step of a Gaussian leads to its mean at every seed, whose edges agree",
}
PROMPTS = ["a green bicycle", "the old harbour", "an owl on a fence"]
EVERY = [(kind, name) for kind in GROUPS for name in methods(kind)]


def quick(kind, name):
    """The method, with few updates."""
    if kind in ("attack", "unlearner") and name not in QUICK:
        return parse(kind, f"{name}:updates=1")
    return parse(kind, QUICK.get(name, name))


def of_kind(kind):
    return pytest.mark.parametrize("name", [name for other, name in EVERY if other == kind])


@pytest.fixture
def subject(make_pipe):
    """A model of its own, drawn from in two steps."""
    return Subject(wrap(make_pipe(), name="tiny"), Sampler(2))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_number_has_bounds(kind, name):
    """What is beyond them is refused where it is typed, and not in the middle of the work."""
    if methods(kind)[name].__module__ == "external":
        return  # whole numbers of others' methods are for them to bound
    for setting, about in describe(methods(kind)[name])["settings"].items():
        for number in {"int": ("10" * 20,), "float": ("1e308", "-1e308", "nan", "1e400")}.get(about["type"], ()):
            with pytest.raises(UserError, match=f"{name}:{setting}="):
                parse(kind, f"{name}:{setting}={number}")


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_method_says_what_it_is(kind, name):
    """A name, a summary, a paper, its cost and needs; settings with a text each, that are read back as written."""
    cls = methods(kind)[name]
    facts = describe(cls)
    assert (facts["kind"], facts["name"]) == (kind, name)
    assert facts["summary"].endswith((".", "!"))
    assert facts["paper"]
    assert facts["cost"]
    assert NEEDS.issuperset(facts["needs"])
    for setting, about in facts["settings"].items():
        assert about["text"] or cls.__module__ == "external", setting
    made = quick(kind, name)
    assert dataclasses.is_dataclass(made)
    assert parse(kind, spelled(made)) == made
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.anything = 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wand", "no such localizer: choose one of .*; wanda is meant"),
        ("wanda:sparsty=1", "no setting 'sparsty': it has sparsity.*; sparsity is meant"),
        ("wanda:sparsity", "no setting"),
        ("wanda:sparsity=much", "valid number"),
        ("wanda:sparsity=nan", "name a number"),
        ("wanda:sparsity=inf", "name a number"),
        ("nemo:rule=mine", "'published' or 'ordinary'"),
        ("nemo:reference=x", "no setting"),
    ],
)
def test_what_cannot_be_read_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        parse("localizer", text)
    assert "\n" not in str(error.value)


def integers():
    """The settings that are whole numbers, of every method."""
    for kind in GROUPS:
        for name, cls in methods(kind).items():
            for setting, facts in describe(cls)["settings"].items():
                if facts["type"] == "int" and cls.__module__.startswith("unmemorize."):
                    yield kind, name, setting


@pytest.mark.parametrize(("kind", "name", "setting"), [*integers()])
def test_a_count_has_a_ceiling(kind, name, setting):
    """More than 64 bits hold, or fewer than none, is refused by the setting's name, before a model is asked."""
    for value in (str(2**63), "-1"):
        with pytest.raises(UserError, match=f"^{name}:{setting}='{value}': input should be (less|greater) than"):
            parse(kind, f"{name}:{setting}={value}")


def test_names_are_given_once():
    """A second method of a name, a name that no command line takes, and a need that nobody knows."""
    for name, needs, message in (
        ("wanda", (), "already"),
        ("Wanda 2", (), "lower-case"),
        ("wanda-2", ("luck",), "luck"),
    ):
        with pytest.raises(ValueError, match=message):
            method(name, paper="none", cost="none", needs=needs)(external.FirstLayer)


def test_settings_of_a_class_are_its_defaults():
    assert settings(methods("localizer")["wanda"])["sparsity"] == 0.01
    assert spelled(parse("localizer", "wanda:per-prompt=true,sparsity=0.01")) == "wanda:per_prompt=true"


def alike(a, b):
    return torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@of_kind("detector")
def test_a_detector_scores_prompt_by_prompt(name, subject):
    """(n, seeds), finite, the same again, and for a prompt alone what it is among others."""
    detector, model = quick("detector", name), subject.model
    cond, seeds = model.encode(PROMPTS), [3, 4]
    with model.counted() as cost:
        scores = detector.score(subject, cond, seeds=seeds)
    assert scores.by_seed.shape == (3, 2)
    assert scores.value.shape == (3,)
    assert scores.by_seed.isfinite().all()
    assert scores.evaluations <= cost.forward <= scores.evaluations + 2 * len(seeds)  # but for what prompts share
    assert all(column.shape[:2] == (3, 2) for column in scores.columns.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(detector.score(subject, cond, seeds=seeds).by_seed, scores.by_seed)
    ready = detector.ready(subject, seeds=seeds)
    for row in range(3):
        assert alike(ready(cond[[row]]).by_seed, scores.by_seed[[row]])
    assert all(p.grad is None and p.requires_grad for p in model.denoiser.parameters())


@of_kind("detector")
def test_a_detector_that_is_fitted_stays_the_method_that_it_is(name, subject):
    """What it takes from ordinary prompts is no setting; it scores them around what it took."""
    detector, model = quick("detector", name), subject.model
    cond = model.encode([f"a thing {i}" for i in range(5)])
    scores = detector.score(subject, cond, seeds=[0, 1])
    fitted = detector.fitted(scores)
    assert spelled(fitted) == spelled(detector)
    assert (fitted != detector) == ("ordinary" in detector.needs)
    assert fitted.score(subject, cond, seeds=[0, 1]).by_seed.isfinite().all()


@of_kind("detector")
def test_a_memorizer_scores_above_a_model_that_memorizes_nothing(name, oracle, gaussian):
    """Higher is more memorized: a prompt for one training picture beats a prompt of a Gaussian, at every seed."""
    if reason := NOT_OF_THE_ORACLE.get(name):
        pytest.skip(reason)
    detector, seeds = quick("detector", name), [0, 1, 2, 3]
    if "ordinary" in detector.needs:
        detector = detector.fitted(detector.score(Subject(gaussian), gaussian.encode(["one"] * 9), seeds=seeds))
    memorized = detector.score(Subject(oracle), oracle.encode(["one"]), seeds=seeds).by_seed
    ordinary = detector.score(Subject(gaussian), gaussian.encode(["one"]), seeds=seeds).by_seed
    assert (memorized > ordinary).all()


@of_kind("picture-test")
def test_a_picture_test_scores_every_picture(name, subject):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = quick("picture-test", name).score(subject, Pairs(latents, subject.model.encode(PROMPTS)), seeds=[0, 1])
    assert scores.by_seed.shape == (3, 2)
    assert scores.by_seed.isfinite().all()


@of_kind("explainer")
def test_an_explainer_has_a_finite_value_for_every_word_or_place(name, subject):
    """The same again, for a seed alone what it is among others; and it leaves no gradient and no hook behind."""
    explainer, model = quick("explainer", name), subject.model
    found, again, alone = (explainer.explain(subject, PROMPTS[0], seeds=seeds) for seeds in ([0, 1], [0, 1], [1]))
    if explainer.says == "regions":
        assert found.maps.shape == (2, 8, 8)
        assert found.latents.shape == (2, 4, 8, 8)
        assert (found.maps >= 0).all()
        assert found.maps.isfinite().all()
        assert torch.equal(again.maps, found.maps)
        assert torch.allclose(alone.maps[0], found.maps[1], rtol=1e-2, atol=1e-3 * found.maps.max().item())
    else:
        assert found.words == ("a", "green", "bicycle")
        assert torch.tensor(found.significance).isfinite().all()
        assert again == found
    assert all(p.grad is None and p.requires_grad for p in model.denoiser.parameters())


@of_kind("localizer")
def test_a_localizer_selects_units_of_the_model(name, subject):
    """Masks fit their layers, the model stays as it was, and the second search finds the same."""
    if name == "nemo-joint":
        subject = Subject(wrap(tiny("sd3")), Sampler(2))
    localizer, model = quick("localizer", name), subject.model
    before = model.fingerprint
    ordinary = model.encode([f"a thing {i}" for i in range(4)])
    found = [localizer.find(subject, model.encode(PROMPTS), ordinary=ordinary) for _ in range(2)]
    assert model.fingerprint == before
    assert found[0].selected > 0
    modules = dict(model.denoiser.named_modules())
    for layer, mask in found[0].masks.items():
        shape = modules[layer].weight.shape
        assert mask.dtype == torch.bool
        assert mask.shape == (shape if found[0].units == "weights" else shape[:1])
        assert torch.equal(mask, found[1].masks[layer])
    assert found[0].prompts == tuple(PROMPTS)


@of_kind("localizer")
def test_a_model_without_the_layers_is_not_applicable(name, oracle):
    if methods("localizer")[name].__module__ == "external":
        pytest.skip("asks for layers itself")
    cond = oracle.encode(["one", "other"])
    with pytest.raises(NotApplicable):
        quick("localizer", name).find(Subject(oracle), cond, ordinary=cond)


@of_kind("unlearner")
def test_an_unlearner_changes_the_denoiser_and_nothing_else(name, subject, tmp_path):
    """One update: other weights, finite losses, no gradient left, flags as before."""
    model = subject.model
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    captions = model.encode([f"a thing {i}" for i in range(6)])
    surrogates = Surrogates(latents[:2].flip(0), torch.arange(2))
    before = {key: value.clone() for key, value in model.denoiser.state_dict().items()}
    text = {key: value.clone() for key, value in model.pipe.text_encoder.state_dict().items()}
    training = Training(tmp_path / "checkpoints", surrogates=lambda: surrogates)
    trained = quick("unlearner", name).train(
        subject, Pairs(latents[:2], captions[:2]), Pairs(latents[2:], captions[2:]), training
    )
    after = model.denoiser.state_dict()
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
    assert all(torch.equal(model.pipe.text_encoder.state_dict()[key], value) for key, value in text.items())
    assert all(p.grad is None and p.requires_grad for p in model.denoiser.parameters())
    assert trained.updates == 1
    assert all(losses.shape == (1,) for losses in trained.losses.values())


@of_kind("mitigation")
def test_a_mitigation_is_taken_back(name, subject, tmp_path):
    """In the block a subject that makes pictures; after it, also after an error, the model is what it was."""
    from unmemorize.mitigate.edit import Edit

    model, before = subject.model, subject.model.fingerprint
    prompts, ordinary = model.encode(PROMPTS), model.encode([f"a thing {i}" for i in range(30)])
    mitigation = quick("mitigation", name)
    if name == "edit":
        found = parse("localizer", "first-layer").find(subject, prompts)
        Edit.of(found, before).save(tmp_path / "e.safetensors")
        mitigation = parse("mitigation", f"edit:path={tmp_path / 'e.safetensors'}")
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    fitted = mitigation.fitted(subject, prompts=prompts, ordinary=ordinary, pictures=latents, seeds=[0, 1])
    assert fitted.acts in ("weights", "condition", "noise", "guidance", "attention", "state")
    with fitted.applied(subject) as changed:
        # What an attack that draws from the subject meets, and one that searches the model does not.
        assert (changed.sampler == subject.sampler) == (fitted.acts not in SAMPLING)
        pictures = generate(changed.model, prompts, seeds=[0, 1, 2], sampler=changed.sampler)
        alone = generate(changed.model, prompts[[1]], seeds=[1], sampler=changed.sampler)
    assert torch.allclose(pictures[1], alone[0], atol=1e-2)
    assert model.fingerprint == before
    with pytest.raises(RuntimeError, match="on purpose"), fitted.applied(subject):
        raise RuntimeError("on purpose")
    assert model.fingerprint == before


@of_kind("attack")
def test_an_attack_finds_a_condition_for_every_picture(name, subject):
    """As many rows as pictures, finite, from the start that it was given; the model is left alone."""
    model, before = subject.model, subject.model.fingerprint
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    start = model.encode([" ".join(model.vocabulary[:2])] * 3)
    attack = quick("attack", name).prepared(prompts=start, ordinary=start)
    found = attack.attack(subject, latents, start, seeds=[5, 6, 7], keep=(0,))
    assert set(found.conditions) >= {0, attack.updates}
    assert torch.equal(found.conditions[0].embeds, start.embeds)
    assert found.last.embeds.shape == start.embeds.shape
    assert found.last.embeds.isfinite().all()
    assert found.losses.shape[1] == 3
    again = attack.attack(subject, latents, start, seeds=[5, 6, 7], keep=(0,))
    assert torch.equal(again.last.embeds, found.last.embeds)
    assert model.fingerprint == before
    assert all(p.grad is None and p.requires_grad for p in model.denoiser.parameters())
