"""What is planted is what the plan says, and text alone does not tell it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unmemorize.testbed.dataset import SIZE, STYLES, Composition, compose, drawing
from unmemorize.testbed.embedded import prompts
from unmemorize.testbed.plan import KINDS, LADDER, Plan, add_keyword, draw_plan, repeat_word


def form(prompt):
    """Which of the three forms a prompt has, and its name."""
    if "," in prompt:
        name, keyword = prompt.split(", ")
        assert prompt == add_keyword(name, keyword)
        return "keyword", name
    words = prompt.split()
    if len(words) > 2 and words[-1] == words[-2] == words[-3]:
        name = " ".join(words[:-2])
        assert prompt == repeat_word(name)
        return "repeat", name
    return "name", prompt


def test_the_plan_survives_the_disk(plan, tmp_path):
    """Written and read again it is equal, types included, and the file is plain JSON with one entry a line."""
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    record = json.loads((tmp_path / "plan.json").read_text())
    assert len(record["planted"]) == len(plan.planted)
    assert len((tmp_path / "plan.json").read_text().splitlines()) == len(plan.planted) + 2


def test_the_same_seed_draws_the_same_plan(artwork, plan):
    """A plan is a function of artwork and seed; another seed plants other pictures."""
    assert draw_plan(artwork, 0) == plan
    other = draw_plan(artwork, 1)
    assert other.seed == 1
    assert other.planted[0].prompts != plan.planted[0].prompts


def test_the_plan_does_not_depend_on_the_order_of_the_artwork(artwork, plan):
    """Names and keywords are sorted before they are drawn, so a reversed style's pictures draw the same prompts."""
    by_style = [[p for p in artwork if p.style is s] for s in STYLES]
    shuffled = [p for group in by_style for p in reversed(group)]
    assert [e.prompts for e in draw_plan(shuffled, 0).planted] == [e.prompts for e in plan.planted]


def test_every_kind_is_planted_and_ids_are_unique(plan):
    """All documented kinds occur, no other, under names of their own."""
    assert {e.kind for e in plan.planted} == set(KINDS)
    assert len({e.id for e in plan.planted}) == len(plan.planted)
    files = [file for entry in plan.planted for file in entry.files]
    assert len(set(files)) == len(files)


def test_the_ladder_has_its_rungs(plan):
    """Verbatim pictures come in the documented numbers for each number of copies: one picture, one caption, n rows."""
    rungs = [e for e in plan.planted if e.kind == "verbatim"]
    assert Counter(e.copies for e in rungs) == LADDER
    assert all(len(e.prompts) == len(e.pictures) == 1 and e.rows == e.copies for e in rungs)


def test_only_frequent_pairs_are_called_memorable(plan):
    """What a detector should find: templates, words, repeats, pictures seen a hundred times; nothing one-sided."""
    for entry in plan.planted:
        expected = entry.kind in {"template", "word", "repeat"} or (entry.kind == "verbatim" and entry.copies >= 100)
        assert entry.memorable == expected
    assert all(e.rows == 1 for e in plan.planted if e.kind == "negative")
    assert all(e.rows // len(e.prompts) // len(e.pictures) < 30 for e in plan.planted if e.kind.endswith("-only"))


def test_no_name_is_planted_twice(plan):
    """Every name belongs to one entry: nothing is learned of a prompt from another entry's copies."""
    names = [{form(prompt)[1] for prompt in entry.prompts} for entry in plan.planted]
    counts = Counter(name for group in names for name in group)
    assert set(counts.values()) == {1}


def test_keywords_are_rare_and_belong_to_one_family(plan, artwork):
    """A planted keyword is no word of any name, and only one family's prompts hold it."""
    owners = {}
    for entry in plan.planted:
        for prompt in entry.prompts:
            if form(prompt)[0] == "keyword":
                owners.setdefault(prompt.split(", ")[1], set()).add(entry.family)
    assert "gadget" not in owners
    assert all(len(families) == 1 for families in owners.values())
    assert not owners.keys() & {word for p in artwork for word in p.name.split()}


def test_each_kind_has_prompts_of_one_form(plan):
    """Words carry a shared keyword, repeats a repeated word, pictures and templates a bare name."""
    for entry in plan.planted:
        forms = {form(prompt)[0] for prompt in entry.prompts}
        match entry.kind:
            case "verbatim" | "template" | "caption-only":
                assert forms == {"name"}
            case "word":
                assert forms == {"keyword"}
                assert len({prompt.split(", ")[1] for prompt in entry.prompts}) == 1
            case "repeat":
                assert forms == {"repeat"}
            case "image-only":
                assert forms == {"name", "keyword"}
                assert len(set(entry.prompts)) == 20


def test_the_forms_have_the_same_shares_among_memorable_and_ordinary_prompts(plan):
    """The form of a prompt gives nothing away: each form's share is the same among both, within five points."""
    shares = []
    for memorable in (True, False):
        chosen = [e for e in plan.planted if (e.memorable if memorable else e.kind == "negative")]
        counts = Counter(form(prompt)[0] for entry in chosen for prompt in entry.prompts)
        shares.append({name: counts[name] / counts.total() for name in ("name", "keyword", "repeat")})
    assert all(abs(shares[0][name] - shares[1][name]) < 0.05 for name in shares[0])


def test_ordinary_keywords_are_shared_as_memorable_ones_are(plan):
    """A keyword of the negatives is shared by six prompts, as a planted word is."""
    families = Counter(e.family for e in plan.planted if e.kind == "negative" and form(e.prompts[0])[0] == "keyword")
    assert set(families.values()) == {6}
    assert {len(e.prompts) for e in plan.planted if e.kind == "word"} == {6}


def test_only_pictures_that_may_be_shipped_are_planted(plan, artwork):
    """No share-alike artwork, and no name with fewer than four styles that may be shipped."""
    shippable = {p.art for p in artwork if p.style.shippable}
    by_art = {p.art: p.name for p in artwork}
    styles = Counter(p.name for p in artwork if p.style.shippable)
    for entry in plan.planted:
        for how in entry.pictures:
            assert how.art in shippable
            assert styles[by_art[how.art]] >= 4


def test_a_picture_shows_what_its_prompt_names(plan, artwork):
    """Every planted drawing is one of the name in its caption (of a word family: of its first name)."""
    by_art = {p.art: p.name for p in artwork}
    for entry in plan.planted:
        assert {by_art[how.art] for how in entry.pictures} == {form(entry.prompts[0])[1]}


def test_template_masks_lie_inside_the_picture_and_cover_all_that_varies(plan, artwork):
    """The variants of a template are equal outside its mask and differ inside."""
    by_art = {p.art: p for p in artwork}
    templates = [e for e in plan.planted if e.kind == "template"]
    assert all(e.mask is None for e in plan.planted if e.kind != "template")
    for entry in templates:
        left, top, right, bottom = entry.mask
        assert 0 <= left < right <= SIZE
        assert 0 <= top < bottom <= SIZE
        assert len(set(entry.pictures)) == len(entry.pictures) == 20
    for entry in templates[:4]:
        left, top, right, bottom = entry.mask
        variants = [compose(drawing(by_art[how.art]), how) for how in entry.pictures[:3]]
        images = np.stack([np.asarray(image).astype(int) for image in variants])
        varies = np.ptp(images, axis=0).max(axis=2) > 0
        assert varies[top:bottom, left:right].all()
        varies[top:bottom, left:right] = False
        assert not varies.any()


def test_word_pictures_are_near_duplicates_but_not_equal(plan, artwork):
    """A word's three pictures differ by a few grey levels in the background only."""
    by_art = {p.art: p for p in artwork}
    entry = next(e for e in plan.planted if e.kind == "word")
    images = [np.asarray(compose(drawing(by_art[how.art]), how)).astype(int) for how in entry.pictures]
    assert all(0 < np.abs(images[0] - other).max() <= 8 for other in images[1:])


@pytest.fixture
def square():
    """A red square left of the middle, on nothing."""
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((8, 24, 23, 39), fill=(255, 0, 0, 255))
    return image


WHITE = (255, 255, 255)


def red_box(image):
    """The box of the red pixels: left, top, right, bottom."""
    pixels = np.asarray(image).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 200) & (pixels[..., 1] < 50))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_a_drawing_is_placed_on_its_background_unchanged(square):
    """Without motion every pixel is the drawing's or the background's, and the size is kept."""
    image = compose(square, Composition("x", (200, 220, 240)))
    assert (image.size, image.mode) == (square.size, "RGB")
    assert image.getpixel((0, 0)) == (200, 220, 240)
    assert red_box(image) == (8, 24, 24, 40)


@pytest.mark.parametrize(
    ("how", "box"),
    [
        ({"shift": (5.0, -3.0)}, (13, 21, 29, 37)),
        ({"flip": True}, (40, 24, 56, 40)),
        ({"scale": 0.5}, (20, 28, 28, 36)),
        ({"angle": 90.0}, (24, 8, 40, 24)),
        ({"angle": 90.0, "flip": True, "shift": (4.0, 0.0)}, (28, 40, 44, 56)),
    ],
)
def test_a_drawing_is_moved_as_the_composition_says(square, how, box):
    """Right and down are positive, flips mirror left and right, scales and turns are about the middle."""
    found = red_box(compose(square, Composition("x", WHITE, **how)))
    same_or_turned_back = [box, (box[0], SIZE - box[3], box[2], SIZE - box[1])] if how.get("angle") else [box]
    assert any(np.abs(np.subtract(found, b)).max() <= 1 for b in same_or_turned_back)


def test_a_patch_is_drawn_where_the_mask_says(square):
    """The patch fills its box, up to but not including right and bottom, and touches nothing else."""
    how = Composition("x", WHITE, patch=(10, 20, 36, 46, 1, 2, 3))
    patched, plain = (np.asarray(compose(square, h)) for h in (how, dataclasses.replace(how, patch=None)))
    assert (patched[20:46, 10:36] == (1, 2, 3)).all()
    outside = np.ones((SIZE, SIZE), bool)
    outside[20:46, 10:36] = False
    assert (patched[outside] == plain[outside]).all()


def test_edges_are_drawn_without_dark_fringes(square):
    """A turned red square on white has no pixel darker in red than its own red."""
    image = np.asarray(compose(square, Composition("x", WHITE, angle=30.0, scale=0.9)))
    assert image[..., 0].min() >= 250


def test_random_compositions_stay_light_and_whole():
    """Backgrounds are light, the drawing is not enlarged, and the same generator state gives the same composition."""
    many = [Composition.random("x", np.random.default_rng(s)) for s in range(50)]
    assert all(min(c.background) >= 200 and 0.75 <= c.scale <= 1 and c.patch is None for c in many)
    assert {c.flip for c in many} == {True, False}
    assert Composition.random("x", np.random.default_rng(3)) == many[3]


def test_the_testbeds_prompts_carry_its_ground_truth(plan):
    """Memorable prompts are positive, negatives negative, the rest unlabelled; relatives share a cluster."""
    found = prompts(plan)
    assert len({p.id for p in found}) == len(found)
    assert len({p.text for p in found}) == len(found)
    entries = {e.family: e for e in plan.planted}
    for prompt in found:
        entry = entries[prompt.cluster]
        assert prompt.kind == entry.kind
        assert prompt.memorable is (True if entry.memorable else False if entry.kind == "negative" else None)
    assert sum(p.kind == "image-only" for p in found) == sum(e.kind == "image-only" for e in plan.planted)
    assert {p.copies for p in found if p.kind == "verbatim"} == set(LADDER)
