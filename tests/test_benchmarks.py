"""The measurements stay in step with what they measure, and the published pages with the published numbers."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem.replace("_", "-") for path in (ROOT / "benchmarks" / "cases").glob("*.py"))
# Nothing is kept of the first two; what is kept of the last was measured before its groups had controls.
NOT_KEPT = ("families", "copy-threshold", "triggers")


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
    assert harness.read("study") == {"seed": 1, "settings": {"second": 0, "first": 1}}
    assert (tmp_path / "study.md").read_text() == "second\nfirst\n"
    seed = 2
    harness.run("study", [])
    assert calls == ["second", "first", "first", "second"]


def test_a_copy_is_one_of_the_prompts_own_picture(harness):
    """Another prompt's picture copies a training picture, and not the prompt's own; of a template any variant is."""
    import common

    references = common.references()
    place = {name: i for i, name in enumerate(references.names)}
    shown = [place[name] for name in ("verbatim-1000-00-00.png", "verbatim-1000-01-00.png", "template-03-02.png")]
    own = references.captions[shown[0]]
    images = references.images[shown]
    prompts = [own, own, references.captions[shown[2]]]
    assert common.are_copies(common.match_any(images)) == [True, True, True]
    assert common.are_copies(common.match_own(images, prompts)) == [True, False, True]


def test_a_caption_is_copied_only_by_its_own_picture(harness):
    """A caption of a word family that gives the picture of another prompt has not copied its own."""
    import common

    explanation = harness.module_of("explanation")
    pictures = common.references()
    rows = [pictures.names.index(name) for name in ("template-07-00.png", "word-15-00.png")]
    captions = [p for p in common.planted(lambda p: p.text == "mobile phone, marker") for _ in rows]
    assert common.are_copies(common.match_any(pictures.images[rows])) == [True, True]
    assert explanation.own_copies(pictures.images[rows], captions) == [0, 1]
