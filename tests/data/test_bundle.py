"""Prompts and pictures of a command: a user's files or the model's own, each read once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from data_pictures import draw, folder_of, png
from unmemorize.core.errors import UserError
from unmemorize.data import bundle as bundles
from unmemorize.data.bundle import Bundle, Own
from unmemorize.data.source import Prompt

SIZE = (48, 48)


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "pictures", [(f"p{i}", png(draw(i)), f"thing {i}") for i in range(4)])


@pytest.fixture
def own(folder, tmp_path):
    """A model's own: a picture that is memorized, one of an ordinary prompt, one in between, and one of nothing."""
    kinds = [("often", "verbatim", True), ("usual", "ordinary", False), ("some", "verbatim", None)]
    prompts = [Prompt(id, f"thing {i}", kind, 1, truth, f"c{i // 2}") for i, (id, kind, truth) in enumerate(kinds)]
    controls = folder_of(tmp_path / "controls", [("c0", png(draw(7)), "thing 7")])
    return Own(tuple(prompts), folder, {f"p{i}.png": prompt for i, prompt in enumerate(prompts)}, controls)


@pytest.fixture
def reads(monkeypatch):
    """The sources that are read, in order."""
    read = []

    def counted(reader):
        def call(path, *rest):
            read.append(path.name)
            return reader(path, *rest)

        return call

    for name in ("read_prompts", "read_references"):
        monkeypatch.setattr(bundles, name, counted(getattr(bundles, name)))
    return read


def test_each_file_is_read_once(folder, tmp_path, reads):
    """However often it is asked for, and also where two options name one folder."""
    (tmp_path / "p.txt").write_text("a\nb\n")
    spec = SimpleNamespace(
        model="m", prompts=str(tmp_path / "p.txt"), references=str(folder), targets=f"{folder}/../pictures"
    )
    bundle = Bundle.of(spec)
    assert [prompt.text for prompt in bundle.prompts] == ["a", "b"]
    assert bundle.prompts is bundle.prompts
    assert bundle.references(SIZE) is bundle.targets(SIZE)
    assert bundle.held_out(SIZE) is None
    assert reads == ["p.txt", "pictures"]
    bundle.references((24, 24))
    assert reads == ["p.txt", "pictures", "pictures"]


def test_a_model_s_own_stands_in_for_files(own, tmp_path, reads):
    """Its prompts, its memorized pictures, its controls, its ordinary prompts; a file named goes before."""
    bundle = Bundle("m", {}, own=own)
    assert bundle.prompts == own.prompts
    assert bundle.ordinary() == ["thing 1"]
    assert len(bundle.references(SIZE)) == 3  # of the fourth nothing is known
    assert bundle.targets(SIZE).names == ("p0.png",)
    assert bundle.controls(SIZE).names == ("c0.png",)
    assert bundle.own_pictures(SIZE, lambda known: known.memorable is None).names == ("p2.png",)
    assert reads == ["pictures", "controls"]
    (tmp_path / "o.txt").write_text("plain\n")
    named = Bundle("m", {"ordinary": str(tmp_path / "o.txt"), "targets": str(own.pictures)}, own=own)
    assert named.ordinary() == ["plain"]
    assert len(named.targets(SIZE)) == 4


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda bundle: bundle.prompts, "which prompts? name a file of captions with --prompts"),
        (lambda bundle: bundle.references(SIZE), "with --references"),
        (lambda bundle: bundle.targets(SIZE), "with --targets"),
        (lambda bundle: bundle.controls(SIZE), "with --controls"),
    ],
)
def test_what_is_missing_is_named(ask, says):
    """By the option that gives it."""
    bundle = Bundle("m", {})
    assert not bundle.has("references")
    with pytest.raises(UserError) as error:
        ask(bundle)
    assert says in str(error.value)
    assert len(bundle.ordinary(7)) == 7


def test_halves_keep_related_prompts_together(own):
    """Both together are all prompts; none is in both, and no cluster is."""
    bundle = Bundle("m", {}, own=own)
    choosing, reporting = bundle.half("choosing"), bundle.half("reporting")
    assert [prompt.id for prompt in choosing] == ["often", "usual"]
    assert [prompt.id for prompt in reporting] == ["some"]


def test_the_testbed_s_own_are_its_plan():
    """Every shipped picture has its entry's truth; those to forget were planted a hundred times or more."""
    from unmemorize.testbed.embedded import PANEL, own, shipped_panel

    testbed = own("testbed-c")
    assert {path.name for path in (PANEL / "images").glob("*.png")} <= testbed.known.keys()
    often = [e for e in shipped_panel().entries if e.kind == "verbatim" and e.dose("C") >= 100]
    assert {n for n, known in testbed.known.items() if bundles.is_target(known)} == {e.files[0] for e in often}
