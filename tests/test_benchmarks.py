"""The measurements stay in step with what they measure, and the published pages with the published numbers."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from unmemorize.core.hooks import observed, record
from unmemorize.core.sample import generators
from unmemorize.testbed.dose import dose_curve

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem.replace("_", "-") for path in (ROOT / "benchmarks" / "cases").glob("*.py"))
NOT_KEPT = ("families", "copy-threshold")  # their numbers are in a test, and in the documentation's text


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """How measurements run, in the repository's folder."""
    monkeypatch.chdir(ROOT)
    for folder in ("tests", "benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import harness

    return harness


@pytest.mark.parametrize("name", NAMES)
def test_a_measurement_finds_what_it_imports_and_says_what_it_is(harness, name, capsys):
    with pytest.raises(SystemExit) as done:
        harness.run(name, ["--help"])
    assert done.value.code == 0
    assert "--only" in capsys.readouterr().out


def order() -> tuple[str, ...]:
    """All measurements in the order in which they are made."""
    names: tuple[str, ...] = runpy.run_path(str(ROOT / "benchmarks" / "__main__.py"))["NAMES"]
    return names


def test_every_measurement_is_made_with_the_others(harness):
    assert sorted(order()) == sorted({*NAMES} - {"copy-threshold"})  # whose numbers are in the documentation's text


@pytest.mark.parametrize("name", sorted({*NAMES} - {*NOT_KEPT}))
def test_a_published_page_is_what_the_published_numbers_give(harness, name):
    study = harness.module_of(name).STUDY
    published = study.path or harness.OUT / f"{name}.md"
    page = "\n".join(study.page(harness.read(name))) + "\n"
    assert page == published.read_text(encoding="utf-8")


def test_the_shipped_dose_response_curve_is_what_the_published_numbers_give(harness):
    from cases.panel import curve

    assert tuple(curve(harness.read("panel")["settings"])) == dose_curve()


def test_the_published_results_are_all_pages(harness, monkeypatch, tmp_path):
    published = harness.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(harness, "PAGE", tmp_path / "results.md")
    harness.write_results(order())
    assert harness.PAGE.read_text(encoding="utf-8") == published


def test_a_case_that_is_kept_is_not_measured_again(harness, monkeypatch, tmp_path):
    """Under other conditions it is, and each row is on the disk before the next is measured."""
    monkeypatch.setattr(harness, "OUT", tmp_path)
    seed, calls = 1, []

    def measured(rows, name):
        calls.append(name)
        assert harness.kept("study", {"seed": seed})["settings"] == rows
        return len(rows)

    def cases(options):
        named = {name: lambda rows, name=name: measured(rows, name) for name in ("first", "second")}
        return harness.Cases({"seed": seed}, named)

    study = harness.Study("Title", "About.", lambda numbers: list(numbers["settings"]), cases)
    monkeypatch.setattr(harness, "module_of", lambda name: SimpleNamespace(STUDY=study, __doc__=""))
    harness.run("study", ["--only", "sec"])
    harness.run("study", [])
    assert calls == ["second", "first"]
    kept = {"seed": 1, "settings": {"second": 0, "first": 1}, "seconds": {"second": 0, "first": 0}}
    assert harness.read("study") == kept
    assert (tmp_path / "study.md").read_text() == "second\nfirst\n"
    seed = 2
    harness.run("study", [])
    assert calls == ["second", "first", "first", "second"]


def test_memory_is_computed_for_the_published_numbers_of_parameters(harness):
    """Within 7% of what each model is published with; some of the kept numbers are counted again."""
    memory = harness.module_of("memory")
    kept = harness.read("memory")
    assert kept.keys() == memory.MODELS.keys()
    for name, model in memory.MODELS.items():
        assert kept[name]["denoiser"] / 1e9 == pytest.approx(model.billions, rel=0.07), name
    for name in ("Stable Diffusion 1.5", "PixArt-Σ"):
        assert kept[name]["denoiser"] == memory.MODELS[name].parameters
    for name in ("PixArt-Σ", "Lumina-Image 2"):  # the last looks at the numbers of a mask on its way
        assert kept[name]["operations"] == pytest.approx(memory.operations(name))
    assert kept["Flux.1"]["encoders"]["CLIP-L"] == memory.of_encoder("CLIP-L") == 123_060_480


def test_a_copy_is_one_of_the_prompts_own_picture(harness):
    """Another prompt's picture copies a training picture, and not the prompt's own; of several the closest counts."""
    import branches
    import common

    references = branches.references()
    names = [f"verbatim-1-0{i}-00.png" for i in range(3)]
    first, second, third = (references.names.index(name) for name in names)
    images = references.images[[first, second, third]]
    places = [[first], [first], [second, third]]
    matches = common.match_closest(images, places, references)
    assert common.are_copies(matches) == [True, False, True]
    assert [match.nearest for match in matches] == [names[0], names[0], names[2]]


def test_activations_of_the_study_of_locality_are_what_hooks_see(harness, tiny_model):
    """Values of the text alone; feed-forwards' inputs at the first step and one noise, at any batch size."""
    case = harness.module_of("locality")
    cond = tiny_model.encode(["a green bicycle", "an owl on a fence", "oden, gadget"])
    schedule = tiny_model.schedule(50)
    x = tiny_model.noise(generators([0])) * schedule.initial_scale
    values, inner = (
        list(tiny_model.text_projections()),
        {n: [] for n in tiny_model.feed_forwards()},
    )
    watched = observed(tiny_model.denoiser, {name: rows.append for name, rows in inner.items()})
    with record(tiny_model.denoiser, values) as outputs, watched, torch.no_grad():
        for i in range(3):
            tiny_model.predict(schedule.scale(x, schedule.timesteps[0]), schedule.timesteps[0], cond[i : i + 1])
    for name, found in case.value_activations(tiny_model, cond):
        assert torch.allclose(found, torch.cat(outputs[name]).flatten(1), atol=1e-6)
    for batch in (2, 64):
        found = dict(case.feed_forward_activations(tiny_model, cond, batch=batch))
        assert list(found) == list(inner)
        assert all(torch.allclose(a, torch.cat(inner[n]).flatten(1), atol=1e-5) for n, a in found.items())
    different = dict(case.feed_forward_activations(tiny_model, cond, seed=1))
    assert not any(torch.allclose(a, different[n]) for n, a in found.items())


def test_methods_that_look_at_the_same_block_are_alike(harness):
    """Alike where an embedding's units of both methods lie in one block, and another's elsewhere."""
    case = harness.module_of("locality")
    layers, weights = {"a": 4, "b": 8}, {"x": 100, "y": 50}
    first = case.block_shares([{"a": [0, 1]}, {"b": [3]}, {}], layers)
    second = case.block_shares([{"x": [5]}, {"y": [7, 8]}, {}], weights)
    assert first.tolist() == [[1, 0], [0, 1], [0, 0]]
    found = case.between(first, second)
    assert found.same.value == 1
    assert found.different == 0
    assert case.block_shares([{"a": [0], "b": [1, 2]}], layers).tolist() == [[0.5, 0.5]]


def test_a_map_has_a_place_for_each_row_and_is_the_same_again(harness):
    case = harness.module_of("locality")
    points = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    assert case.tsne(points).shape == (9, 2)
    assert np.array_equal(case.tsne(points), case.tsne(points))
