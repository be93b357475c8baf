"""The measurements' scripts stay in step with what they measure."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_finds_what_it_imports(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    monkeypatch.syspath_prepend(str(FOLDER))
    runpy.run_path(str(path))


def test_a_copy_is_one_of_the_prompts_own_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another prompt's picture copies a training picture, and not the prompt's own; of a template any variant is."""
    monkeypatch.chdir(FOLDER.parent)
    common = runpy.run_path(str(FOLDER / "common.py"))
    references = common["REFERENCES"]
    place = {name: i for i, name in enumerate(references.names)}
    shown = [place[name] for name in ("verbatim-1000-00-00.png", "verbatim-1000-01-00.png", "template-03-02.png")]
    own = references.captions[shown[0]]
    images = references.images[shown]
    prompts = [own, own, references.captions[shown[2]]]
    assert common["are_copies"](common["match_any"](images)) == [True, True, True]
    assert common["are_copies"](common["match_own"](images, prompts)) == [True, False, True]


def test_a_caption_is_copied_only_by_its_own_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption of a word family that gives the picture of another prompt has not copied its own."""
    monkeypatch.chdir(FOLDER.parent)
    monkeypatch.syspath_prepend(str(FOLDER))
    script = runpy.run_path(str(FOLDER / "explanation.py"))
    pictures = script["REFERENCES"]
    rows = [pictures.names.index(name) for name in ("template-07-00.png", "word-15-00.png")]
    captions = [p for p in script["planted"](lambda p: p.text == "mobile phone, marker") for _ in rows]
    assert script["are_copies"](script["match_any"](pictures.images[rows])) == [True, True]
    assert script["own_copies"](pictures.images[rows], captions) == [0, 1]
