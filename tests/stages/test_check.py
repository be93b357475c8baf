"""Is this picture in there: scores beside those of controls, all and equally complex ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unmemorize.core.methods import Subject, parse
from unmemorize.core.results import Pairs
from unmemorize.data.pictures import load_image
from unmemorize.metrics.calibrate import conformal_p_values
from unmemorize.metrics.complexity import png_sizes
from unmemorize.models.load import load
from unmemorize.report.check import places
from unmemorize.stages.check import calibrated

QUICK = ("--method", "flipd:probes=1", "--method", "velocity-error:probes=1")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A captioned picture, one without a caption, and 24 controls with captions, one of which is the first picture."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)

    def draw(path, caption):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        if caption:
            path.with_suffix(".txt").write_text(caption)

    draw(root / "mine" / "owl.png", "an owl on a fence")
    draw(root / "plain" / "harbour.png", "")
    for k in range(23):
        draw(root / "controls" / f"{k:02d}.png", f"a boat, {k}")
    for name in ("owl.png", "owl.txt"):
        (root / "controls" / name).write_bytes((root / "mine" / name).read_bytes())
    for k in range(5):
        draw(root / "few" / f"{k}.png", "a boat")
    return root


def test_a_picture_stands_beside_the_controls(call, pictures, tiny_folder):
    """Scores as the tests give them with captions, p-values against the others; the picture is no control of itself."""
    owl = pictures / "mine" / "owl.png"
    code, out, err = call("check", tiny_folder, owl, "--controls", pictures / "controls", *QUICK, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["controls"], found["captions"]) == (23, True)
    assert found["evaluations"] == 24 * (2 + 1)
    (row,) = found["pictures"]
    assert row["picture"] == str(owl)
    assert row["complexity"] == png_sizes(load_image(owl)[None]).item()
    model = load(str(tiny_folder))
    files = [owl, *(pictures / "controls" / f"{k:02d}.png" for k in range(23))]
    with torch.no_grad():
        latents = model.invert(torch.stack([load_image(file) for file in files]))
    pairs = Pairs(latents, model.encode([file.with_suffix(".txt").read_text() for file in files]))
    for name, test in row["methods"].items():
        scores = parse("picture-test", name).score(Subject(model), pairs, seeds=[0]).value
        assert test["score"] == pytest.approx(scores[0].item(), rel=1e-3)
        assert test["p_value"] == conformal_p_values([scores[0]], scores[1:].tolist())[0]
        assert test["q_value"] == max(test["p_value"], test["p_value_matched"])


def test_enough_pictures_are_tested_as_a_set(call, pictures, tiny_folder, monkeypatch):
    """From as many pictures and controls as a set needs; one p-value a test, and a line of it."""
    monkeypatch.setattr("unmemorize.stages.check.SET", 2)
    given = (pictures / "few", "--controls", pictures / "controls", "--method", "loss:levels=1")
    code, out, err = call("check", tiny_folder, *given, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert 0 < found["set"]["loss:levels=1"] < 1
    assert f"all 5 pictures as a set, p = {found['set']['loss:levels=1']:.2g}" in call("check", tiny_folder, *given)[1]
    monkeypatch.setattr("unmemorize.stages.check.SET", 6)
    assert json.loads(call("check", tiny_folder, *given, "--json")[1])["set"] == {}


def test_a_page_shows_the_pictures_and_where_their_scores_lie(call, pictures, tiny_folder, tmp_path):
    """Names of files are text, whatever is in them; the page loads nothing, and only the page is left."""
    hostile = pictures / "hostile"
    hostile.mkdir()
    (hostile / "<b>owl & co.png").write_bytes((pictures / "mine" / "owl.png").read_bytes())
    page = tmp_path / "page.html"
    given = (hostile, "--controls", pictures / "controls", *QUICK[:2])
    code, out, err = call("check", tiny_folder, *given, "--out", page)
    assert code == 0, err
    assert f"page: {page}" in out
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    html = page.read_text()
    assert "<b>owl" not in html
    assert "&lt;b&gt;owl &amp; co.png" in html
    assert html.count("data:image/") == 1
    assert html.count("<line ") == 23
    assert html.count("<circle ") == 1
    found = json.loads(call("check", tiny_folder, *given, "--json")[1])
    score, known = found["pictures"][0]["methods"]["flipd:probes=1"]["score"], found["known"]["flipd:probes=1"]
    assert found["pictures"][0]["methods"]["flipd:probes=1"]["p_value"] == conformal_p_values([score], known)[0]
    place, others = places(score, known)
    assert min(place, *others) == 0
    assert max(place, *others) == 1
    assert sorted(range(23), key=others.__getitem__) == sorted(range(23), key=known.__getitem__)
    assert sum(x >= place for x in others) == sum(value >= score for value in known)


def test_captions_are_shown_to_all_pictures_or_to_none(call, pictures, tiny_folder):
    """A folder and a file together; one of them has no caption."""
    given = (pictures / "mine", pictures / "plain" / "harbour.png", "--controls", pictures / "controls")
    code, out, err = call("check", tiny_folder, *given, *QUICK[:2])
    assert code == 0, err
    assert "23 controls, without captions" in out
    assert out.count("flipd:probes=1") == 2
    assert out.splitlines()[-1].startswith("next: unmemorize attack")


def test_among_equally_complex_pictures_a_simple_one_is_no_surprise():
    """By hand: a simple picture with a high score, and as simple controls that score higher still."""
    known, sizes = np.arange(100.0), np.repeat([100.0, 900.0], 50)
    known[:25] += 1000  # half of the simple ones
    found = calibrated(np.array([200.0, 200.0]), known, np.array([100.0, 900.0]), sizes)
    assert found.p.tolist() == [26 / 101] * 2
    assert found.matched.tolist() == [1.0, 1 / 26]
    assert found.q.tolist() == [1.0, 2 * 26 / 101]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL"], "which picture? name its file"),
        (["MODEL", "mine/owl.png"], "--controls"),
        (["MODEL", "mine/owl.png", "--controls", "few"], "5 controls, and p-values need 20"),
        (["MODEL", "missing.png", "--controls", "few"], "missing.png: no such file"),
        (["MODEL", "mine/owl.txt.zip", "--controls", "few"], "owl.txt.zip"),
        (["mine/owl.png"], "is this meant? unmemorize check testbed mine/owl.png"),
        (["MODEL", "mine/owl.png", "--controls", "controls", "--method", "luck"], "no such picture-test"),
    ],
)
def test_a_mistake_is_one_line(call, pictures, tiny_folder, monkeypatch, arguments, message):
    monkeypatch.chdir(pictures)
    code, out, err = call("check", *(str(tiny_folder) if word == "MODEL" else word for word in arguments))
    assert (code, out) == (2, "")
    assert message in err
