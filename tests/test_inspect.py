"""Inspecting prompts one at a time: the answers are those of the methods they come from, from any thread."""

from __future__ import annotations

import threading

import pytest
import torch

from pipelines import tiny
from unmemorize.app.fragments import gallery
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Subject, parse
from unmemorize.core.sample import Sampler, generate
from unmemorize.core.specs import InspectSpec
from unmemorize.data.pictures import save_image
from unmemorize.detect.noise import NoiseGap
from unmemorize.explain.gradient import Gradient
from unmemorize.metrics.calibrate import conformal_threshold
from unmemorize.models.load import load
from unmemorize.stages.explain import brightness
from unmemorize.stages.inspect import KEPT, open_inspector

PROMPT = "a green bicycle"
SEEDS, STEPS = (0, 1), 3


@pytest.fixture(scope="module")
def model(tiny_folder):
    """The random pipeline, loaded apart from what is inspected."""
    return load(str(tiny_folder))


@pytest.fixture(scope="module")
def pictures_folder(model, tmp_path_factory):
    """Training pictures: the first is what the prompt gives at seed 0, the others are noise."""
    folder = tmp_path_factory.mktemp("images")
    save_image(generate(model, model.encode([PROMPT]), seeds=[0], sampler=Sampler(STEPS))[0], folder / "made.png")
    (folder / "made.txt").write_text("what it made")
    for seed in range(3):
        noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))
        save_image(noise, folder / f"noise-{seed}.png")
    return folder


@pytest.fixture(scope="module")
def stages():
    """What was reported while the inspector opened."""
    return []


@pytest.fixture(scope="module")
def inspector(tiny_folder, pictures_folder, stages):
    spec = InspectSpec(
        model=str(tiny_folder), references=str(pictures_folder), seeds=len(SEEDS), pictures=len(SEEDS), steps=STEPS
    )
    return open_inspector(spec, lambda *report: stages.append(report))


def test_score_is_the_detectors_and_its_threshold_is_conformal(inspector, model):
    from unmemorize.data.ordinary import ordinary_prompts

    cond = model.encode([PROMPT, *ordinary_prompts()])
    expected = NoiseGap().score(Subject(model, Sampler(STEPS)), cond, seeds=SEEDS).by_seed
    score = inspector.score(PROMPT)
    assert score.values == pytest.approx(expected[0].tolist(), rel=1e-4)
    assert score.mean == pytest.approx(float(expected[0].mean()), rel=1e-4)
    assert score.threshold == pytest.approx(conformal_threshold(expected[1:].mean(1).tolist()), rel=1e-4)
    assert score.memorized == (score.mean > score.threshold)
    assert list(inspector.ordinary) == sorted(inspector.ordinary)
    assert sum(value > inspector.threshold for value in inspector.ordinary) <= 1


def test_words_are_those_of_explain(inspector, model):
    expected = Gradient().explain(Subject(model, Sampler(STEPS)), PROMPT, seeds=SEEDS)
    found = inspector.words(PROMPT)
    assert found.words == ("a", "green", "bicycle")
    assert found.significance == pytest.approx(expected.significance, rel=1e-4)


def test_pictures_are_the_models_own_and_are_matched(inspector, model):
    expected = generate(model, model.encode([PROMPT] * 2), seeds=SEEDS, sampler=Sampler(STEPS))
    made = inspector.pictures(PROMPT)
    assert torch.equal(torch.stack([p.image for p in made.pictures]), expected)
    assert [p.seed for p in made.pictures] == list(SEEDS)
    first = made.pictures[0]
    assert first.copied
    assert (first.nearest.match.nearest, first.nearest.match.verdict) == ("made.png", "verbatim")
    assert first.nearest.caption == "what it made"
    assert torch.allclose(first.nearest.image, first.image, atol=1 / 255)
    assert made.outcome is None


@pytest.mark.parametrize("regions", ["score-map", "curvature-map:probes=1"])
def test_each_picture_without_the_guard_has_a_map(tiny_folder, model, tmp_path, regions):
    """The explainer's own, as bright as its share of the highest value; that pictures are made twice changes none."""
    (tmp_path / "ordinary.txt").write_text("\n".join(f"a thing {i}" for i in range(99)))
    ordinary = str(tmp_path / "ordinary.txt")
    spec = InspectSpec(model=str(tiny_folder), ordinary=ordinary, seeds=1, pictures=2, steps=2, regions=regions)
    inspector = open_inspector(spec, lambda *report: None)
    stages = []
    made = inspector.pictures(PROMPT, progress=lambda stage, done, total: stages.append(stage))
    found = parse("explainer", regions).explain(Subject(model, Sampler(2)), PROMPT, seeds=SEEDS)
    maps = torch.stack([picture.map for picture in made.pictures])
    assert torch.allclose(maps, brightness(found.maps, (32, 32)), atol=1e-3)
    assert stages[-1] == regions.partition(":")[0]
    expected = generate(model, model.encode([PROMPT] * 2), seeds=SEEDS, sampler=Sampler(2))
    assert torch.equal(torch.stack([picture.image for picture in made.pictures]), expected)
    assert all(picture.map is None for picture in inspector.pictures(PROMPT, guarded=True).pictures)
    shown = gallery(made, inspector.pictures(PROMPT, guarded=True), "<b>map")
    assert shown.count('class="map"') == 2
    assert "where: &lt;b&gt;map" in shown


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        ("gradient", "it does not say regions: choose one of bright-ending"),
        ("luck", "no such explainer"),
    ],
)
def test_what_gives_no_map_is_refused_before_the_model_is_loaded(regions, says):
    with pytest.raises(UserError, match=says):
        open_inspector(InspectSpec(model="no/folder", regions=regions), lambda *report: None)


def test_guard_acts_above_its_own_limit_only(inspector):
    made = inspector.pictures(PROMPT, guarded=True)
    seen = made.outcome
    assert seen.acted == tuple(value > seen.limits.threshold for value in seen.before)
    plain = inspector.pictures(PROMPT).pictures
    for acted, picture, other in zip(seen.acted, made.pictures, plain, strict=True):
        assert acted or torch.equal(picture.image, other.image)


def test_pictures_are_remembered_for_a_while(inspector):
    reports = []
    inspector.pictures("an owl", progress=lambda *report: reports.append(report))
    assert [(done, total) for _, done, total in reports] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    again = inspector.pictures("an owl")
    assert inspector.pictures("an owl") is again
    for number in range(KEPT):
        inspector.pictures(f"owl {number}")
    assert inspector.pictures("an owl") is not again


def test_scores_go_on_while_pictures_are_made_and_neither_changes_the_other(inspector):
    alone, pictures = inspector.score(PROMPT), inspector.pictures("two kites", guarded=True)
    inspector._made.clear()
    started, scored, during = threading.Event(), threading.Event(), []

    def hold(stage, done, total):
        started.set()
        during.append(scored.wait(60))

    results = []
    worker = threading.Thread(
        target=lambda: results.append(inspector.pictures("two kites", guarded=True, progress=hold))
    )
    worker.start()
    assert started.wait(60)
    assert inspector.score(PROMPT) == alone
    assert inspector.words(PROMPT).words == ("a", "green", "bicycle")
    scored.set()
    worker.join(60)
    assert all(during)
    for before, after in zip(pictures.pictures, results[0].pictures, strict=True):
        assert torch.equal(before.image, after.image)


def test_opening_reports_what_takes_time(inspector, stages):
    assert stages[0] == ("calibrate", 0, 150)
    assert ("calibrate", 150, 150) in stages
    assert stages[-1] == ("guard", 1, 1)
    assert inspector.seconds > 0


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_a_mistake(inspector, prompt):
    for ask in (inspector.score, inspector.words, inspector.pictures):
        with pytest.raises(UserError, match="prompt is empty"):
            ask(prompt)


def test_without_training_pictures_nothing_is_matched(tiny_folder):
    made = open_inspector(InspectSpec(model=str(tiny_folder), seeds=1, pictures=1, steps=2), lambda *_: None).pictures(
        PROMPT
    )
    assert made.pictures[0].nearest is None
    assert not made.pictures[0].copied


def test_too_few_ordinary_prompts_are_refused(tiny_folder, tmp_path):
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    spec = InspectSpec(model=str(tiny_folder), ordinary=str(tmp_path / "few.txt"), seeds=1, steps=2)
    with pytest.raises(NotApplicable, match="99 ordinary prompts"):
        open_inspector(spec, lambda *_: None)


def test_another_family_is_inspected_too(tmp_path):
    """A transformer with three text encoders: its pictures, and a guard that has its own pipeline."""
    tiny("sd3").save_pretrained(tmp_path / "model")
    (tmp_path / "ordinary.txt").write_text("\n".join(f"a thing {i}" for i in range(99)))
    ordinary = str(tmp_path / "ordinary.txt")
    inspector = open_inspector(
        InspectSpec(model=str(tmp_path / "model"), ordinary=ordinary, seeds=1, pictures=1, steps=2), lambda *_: None
    )
    model = load(str(tmp_path / "model"))
    expected = generate(model, model.encode([PROMPT]), seeds=[0], sampler=Sampler(2, inspector.spec.guidance))
    assert torch.equal(inspector.pictures(PROMPT).pictures[0].image, expected[0])
    assert inspector.pictures(PROMPT, guarded=True).outcome is not None
