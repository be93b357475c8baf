"""The panel balances: every picture at another dose in every branch, and nothing planted twice."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from unmemorize.core.errors import UserError
from unmemorize.models.load import load
from unmemorize.testbed import flow, train_panel
from unmemorize.testbed.architecture import build_vae, token_ids
from unmemorize.testbed.dataset import SIZE, STYLES, Picture, drawing
from unmemorize.testbed.flow import (
    PLACES,
    FlowRecipe,
    Weighing,
    build_transformer,
    read_captions,
    text_encoder,
    train_flow,
)
from unmemorize.testbed.panel import BRANCHES, HALVES, Panel, check, draw_panel, near_duplicates, rare_words
from unmemorize.testbed.recipe import Recipe
from unmemorize.testbed.rows import FORMS, panel_captions, panel_rows
from unmemorize.testbed.shapes import COLOURS, DRAWINGS, shapes
from unmemorize.testbed.train_panel import (
    PLAN,
    TRUNK,
    WORDS_PLAN,
    _branch_record,
    _record,
    _unet_hash,
    require_recipe,
    train_branch,
    train_trunk,
)
from unmemorize.testbed.words import draw_words
from unmemorize.unlearn.loop import Team

VIEWS = 2
RECIPE = Recipe(views=1, text_steps=1, text_batch=4, text_streams=1, batch=2, branch=1, steps=1)


@pytest.fixture(scope="module", params=["drawn", "shipped"])
def either(request, panel):
    """A panel drawn from made-up artwork, and the shipped one."""
    return panel if request.param == "drawn" else Panel.load(PLAN)


def of_kind(panel, kind):
    return [entry for entry in panel.entries if entry.kind == kind]


def test_every_branch_has_every_dose_equally_often(either):
    """Twenty-four pictures at each dose and 10,320 rows of them in every branch; each picture once at each dose."""
    entries = of_kind(either, "verbatim")
    for branch in BRANCHES:
        assert Counter(e.dose(branch) for e in entries) == {0: 24, 30: 24, 100: 24, 300: 24}
        assert sum(e.rows(branch) for e in entries) == 10_320
    assert {tuple(sorted(e.doses)) for e in entries} == {(0, 30, 100, 300)}
    for branch in BRANCHES:
        for half in ("choosing", "reporting"):
            counts = Counter(e.dose(branch) for e in entries if e.half == half)
            assert counts == {0: 12, 30: 12, 100: 12, 300: 12}


def test_pictures_are_paired_within_a_half(either):
    """Half of the pictures are absent in one branch of a half and at 100 in the other, the other half at 30 and 300."""
    for first, second in ("AB", "CD"):
        pairs = Counter(frozenset((e.dose(first), e.dose(second))) for e in of_kind(either, "verbatim"))
        assert pairs == {frozenset((0, 100)): 48, frozenset((30, 300)): 48}


@pytest.mark.parametrize("half", ["choosing", "reporting"])
@pytest.mark.parametrize("kind", ["verbatim", "word"])
def test_text_alone_cannot_tell(either, half, kind):
    """Whatever a classifier of texts says, its area over the paired prompts of two branches is one half."""
    branches = [b for b in BRANCHES if HALVES[b] == half]
    rng = np.random.default_rng(0)
    labels, scores = [], []
    for entry in of_kind(either, kind):
        doses = [entry.dose(b) for b in branches]
        if 0 not in doses:
            continue
        for _ in entry.prompts:
            labels += [dose > 0 for dose in doses]
            scores += [rng.normal()] * len(doses)
    assert len(labels) > 30
    assert roc_auc_score(labels, scores) == pytest.approx(0.5, abs=1e-12)


def test_words_are_planted_on_a_ladder(either):
    """Three words on each rung of every branch, before or after names that nothing else is planted with."""
    words = of_kind(either, "word")
    sides = Counter()
    for i, branch in enumerate(BRANCHES):
        assert Counter(len(e.captions[i]) for e in words) == {0: 3, 10: 3, 20: 3, 40: 3}
        names = [e.name(caption) for e in words for caption in e.captions[i]]
        assert len(set(names)) == len(names) == 210
        for entry in words:
            assert entry.dose(branch) == len(entry.captions[i])
            sides.update(caption.startswith(f"{entry.word}, ") for caption in entry.captions[i])
            assert all(entry.word in caption.split(", ") for caption in (*entry.captions[i], *entry.prompts))
    assert 0.4 < sides[True] / sides.total() < 0.6


def test_held_out_prompts_are_never_trained_on(either, artwork):
    """Neither a word's held-out prompts nor their names, with any word, in any branch."""
    words = of_kind(either, "word")
    trained = {e.name(caption) for e in words for captions in e.captions for caption in captions}
    held_out = [e.name(prompt) for e in words for prompt in e.prompts]
    assert len(set(held_out)) == len(held_out) == 72
    assert not trained.intersection(held_out)


def test_repeats_are_planted_at_every_k_and_asked_at_every_k(either):
    """The caption says its last word as often as the dose says; every branch is asked all of them."""
    for entry in of_kind(either, "repeat"):
        said = [captions[0].split().count(captions[0].split()[-1]) for captions in entry.captions]
        once = entry.prompts[0].split().count(entry.prompts[0].split()[-1]) - 1
        assert [n - once for n in said] == list(entry.doses)
        assert {captions[0] for captions in entry.captions} == set(entry.prompts)


def test_what_has_no_square_is_in_one_branch_of_either_half(either):
    """Templates and one-sided duplicates: planted in half of the branches, in as many of each."""
    for kind in ("template", "caption-only", "image-only"):
        entries = of_kind(either, kind)
        assert {sum(e.doses[:2]) for e in entries} == {sum(e.doses[2:]) for e in entries} == {1}
        assert {sum(e.dose(b) for e in entries) for b in BRANCHES} == {len(entries) // 2}


def test_no_name_and_no_drawing_is_planted_twice(either):
    """Names belong to one entry, but for those of words, which are dealt anew in every branch."""
    owners = {}
    for entry in either.entries:
        shared = entry.kind == "word"
        captions = [c for captions in entry.captions for c in captions] + list(entry.prompts)
        for name in {entry.name(c) for c in captions}:
            stem = name if entry.kind != "repeat" else entry.prompts[0]
            owners.setdefault(stem, set()).add("word" if shared else entry.id)
    assert {len(of) for of in owners.values()} == {1}
    drawings = [{p.art for p in e.pictures} for e in either.entries]
    assert sum(len(arts) for arts in drawings) == len(set().union(*drawings))
    files = [file for entry in either.entries for file in entry.files]
    assert len(files) == len(set(files))
    assert len({entry.id for entry in either.entries}) == len(either.entries)


def test_unseen_pictures_have_ordinary_prompts(either):
    """Two hundred pictures that nothing is trained on, half of them for choosing."""
    unseen = [e for e in of_kind(either, "ordinary") if e.pictures]
    assert len(unseen) == 200
    assert Counter(e.half for e in unseen) == {"choosing": 100, "reporting": 100}
    assert all(e.rows(branch) == 0 for e in unseen for branch in BRANCHES)
    assert len(of_kind(either, "ordinary")) == 225
    assert len(of_kind(either, "plain")) == 40


def test_the_same_seed_draws_the_same_panel(artwork, panel, tmp_path):
    """It is a function of artwork and seed, and survives the disk."""
    assert draw_panel(artwork, 0) == panel
    assert draw_panel(artwork, 1).entries[0].prompts != panel.entries[0].prompts
    panel.save(tmp_path / "plan.json")
    assert Panel.load(tmp_path / "plan.json") == panel


def turned(picture, **fields):
    buffer = io.BytesIO()
    drawing(picture).rotate(90).save(buffer, "png")
    return dataclasses.replace(picture, png=buffer.getvalue(), **fields)


def test_only_pictures_that_may_be_shipped_are_planted_in_whatever_order_they_come(artwork, panel):
    """Neither share-alike drawings nor names of three styles change the plan, nor the order within a style."""
    others = [turned(p, art=p.art.replace("noto/", "openmoji/")) for p in artwork[:800]]
    others += [turned(p, art=f"{p.art}-another", name="another", tags=("elsewhere",)) for p in artwork[:2400:800]]
    mixed = [p for style in STYLES for p in reversed([*artwork, *others]) if p.style is style]
    drawn = draw_panel(mixed, 0)
    assert drawn == panel
    assert not drawn.withheld & {p.art for p in others}


def test_a_picture_shows_what_its_prompt_names(artwork, panel):
    """Of every kind but words and pictures under other names."""
    names = {p.art: p.name for p in artwork}
    for entry in panel.entries:
        if entry.kind not in ("word", "image-only"):
            shown = {names[picture.art] for picture in entry.pictures}
            assert shown <= {entry.name(entry.prompts[0])}


def test_rare_words_are_keywords_of_one_name_and_in_none():
    """Shared ones, short ones and parts of a name are none, nor what only a name of three styles has."""
    tags = {"red fox": ("gadget", "burrow", "den", "crow"), "old crow": ("gadget", "nest"), "kite": ("string",)}
    known = {"red fox": 4, "old crow": 4, "kite": 3}
    artwork = [
        Picture(f"{style.name}/{name}", name, tags[name], 4, b"")
        for name, styles in known.items()
        for style in STYLES[:styles]
    ]
    assert rare_words(artwork) == {"burrow": "red fox", "nest": "old crow"}


def test_near_duplicates_are_not_planted(artwork):
    """A drawing that nearly equals another one, whatever its name or style, is known."""
    twin = dataclasses.replace(artwork[5], art="openmoji/twin", name="another")
    assert near_duplicates([*artwork[:100], twin]) == {artwork[5].art, twin.art}


def change(panel, index, **fields):
    entries = list(panel.entries)
    entries[index] = dataclasses.replace(entries[index], **fields)
    return Panel(panel.seed, tuple(entries))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"doses": (300, 30, 0, 100)}, "does not balance: verbatim in branch A"),
        ({"half": "reporting"}, "does not balance: verbatim has"),
        ({"copies": (0, 30, 100, 300)}, "verbatim-0-00: dose 30 in branch A, 0 rows"),
        ({"kind": "repeat"}, "does not balance: verbatim"),
    ],
)
def test_a_panel_that_does_not_balance_is_refused_in_one_line(panel, fields, message, tmp_path):
    """The message names the file and the first entry, kind or branch that is wrong."""
    changed = change(panel, 0, **fields)
    with pytest.raises(UserError, match=message):
        check(changed)
    changed.save(tmp_path / "plan.json")
    with pytest.raises(UserError, match=rf"plan\.json: {message}") as error:
        Panel.load(tmp_path / "plan.json")
    assert "\n" not in str(error.value)


def test_what_is_planted_twice_is_refused(panel):
    """A drawing of two entries, a name of two entries in one branch, a held-out prompt that is trained on."""
    first, second = panel.entries[:2]
    word = next(i for i, e in enumerate(panel.entries) if e.kind == "word")
    with pytest.raises(UserError, match=f"is planted as {first.id} too"):
        check(change(panel, 1, pictures=first.pictures))
    with pytest.raises(UserError, match=f"has another picture in branch A, {first.id}"):
        check(change(panel, 1, captions=first.captions))
    trained = next(captions for captions in panel.entries[word].captions if captions)
    with pytest.raises(UserError, match="is trained on"):
        check(change(panel, word, prompts=(*second.prompts, trained[0])))


@pytest.mark.parametrize("text", ["", "[]", '{"seed": 0}', '{"seed": 0, "entries": [{"id": 1}]}'])
def test_a_file_that_is_no_plan_is_refused(text, tmp_path):
    """One line that names it."""
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError, match=r"plan\.json: no plan of a panel"):
        Panel.load(tmp_path / "plan.json")


def test_the_trunk_sees_nothing_that_is_planted(panel, artwork):
    """Its rows are the drawings that are not withheld, and every branch has the same rows first."""
    ordinary = panel.ordinary(artwork)
    assert not {p.art for p in ordinary} & panel.withheld
    assert len(ordinary) == len(artwork) - len(panel.withheld) + len(shapes())
    trunk = panel_rows(panel, ordinary, VIEWS)
    assert int(trunk.picture.max()) == len(ordinary) * VIEWS - 1
    assert trunk.captions[0] == ""
    assert len(set(trunk.captions)) == len(trunk.captions)
    for branch in BRANCHES:
        rows = panel_rows(panel, ordinary, VIEWS, branch)
        assert rows.captions == trunk.captions
        assert torch.equal(rows.caption[: len(ordinary)], trunk.caption)


def test_a_branch_sees_each_caption_with_each_picture_as_often_as_planned(panel, artwork):
    """The table of a branch holds exactly the plan's pairs."""
    ordinary = panel.ordinary(artwork)
    rows = panel_rows(panel, ordinary, VIEWS, "C")
    pairs = Counter()
    for captions, pictures in zip(
        rows.caption[len(ordinary) :].tolist(), rows.picture[len(ordinary) :].tolist(), strict=True
    ):
        assert len(set(captions)) == len(set(pictures)) == 1
        pairs[rows.captions[captions[0]], pictures[0]] += 1
    expected = Counter()
    number = len(ordinary) * VIEWS
    for entry in panel.entries:
        for _ in entry.pictures:
            expected.update(dict.fromkeys(((caption, number) for caption in entry.captions[2]), entry.copies[2]))
            number += 1
    assert pairs == +expected


def test_keywords_of_ordinary_captions_stand_on_both_sides(artwork):
    """Twenty captions: the name, with a keyword before it and after it, with its last word repeated 2, 3 or 5 times."""
    for number in range(6):
        captions = panel_captions(artwork[0], number)
        assert len(captions) == FORMS
        assert captions.count("thing aaa") == 12
        assert {captions.count("keyaaa, thing aaa"), captions.count("thing aaa, keyaaa")} == {3, 4}
        assert captions[-1].split().count("aaa") == (2, 3, 5)[number % 3]


def test_plain_pictures_are_what_their_captions_say():
    """Forty captions; the middle of each picture has the colour that its caption names."""
    drawn = shapes()
    assert Counter(Counter(p.name for p in drawn).values()) == {DRAWINGS: 40}
    assert len({p.png for p in drawn}) == 40
    for picture in drawn[::DRAWINGS]:
        image = drawing(picture)
        assert image.getpixel((SIZE // 2, SIZE // 2)) == (*COLOURS[picture.name.split()[1]], 255)
        assert image.getpixel((0, 0))[3] == 0


def test_template_pictures_differ_inside_the_mask_only():
    """The variants of a template are planted under one layout."""
    panel = Panel.load(PLAN)
    for entry in of_kind(panel, "template"):
        assert len({dataclasses.replace(p, patch=None) for p in entry.pictures}) == 1
        assert {p.patch[:4] for p in entry.pictures} == {entry.mask}
        assert len(set(entry.pictures)) == 20
        left, top, right, bottom = entry.mask
        assert 0 <= left < right <= SIZE
        assert 0 <= top < bottom <= SIZE


def test_checkpoints_of_another_recipe_are_refused(panel, tmp_path):
    """The folder's first recipe stays; another one, or another plan, is named in one line."""
    require_recipe(tmp_path, Team(), _record(Recipe(), panel))
    require_recipe(tmp_path, Team(), _record(Recipe(), panel))
    with pytest.raises(UserError, match=r"checkpoints of another recipe \(steps\)"):
        require_recipe(tmp_path, Team(), _record(Recipe(steps=5), panel))
    with pytest.raises(UserError, match=r"checkpoints of another recipe \(captions\)"):
        require_recipe(tmp_path, Team(), _record(Recipe(), change(panel, 0, prompts=("other",))))


@pytest.fixture
def small(monkeypatch, tmp_path, panel, artwork):
    """A folder where the panel trains on made-up artwork, without a VAE or a text model to speak of."""

    def noise(vae, ordinary, planted, *_):
        count = len(ordinary) * RECIPE.views + len(planted)
        return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    panel.save(tmp_path / "plan.json")
    monkeypatch.setattr(train_panel, "PLAN", tmp_path / "plan.json")
    monkeypatch.setattr(train_panel, "TRUNK", tmp_path / "none")
    monkeypatch.setattr(train_panel, "pictures", lambda data: artwork)
    monkeypatch.setattr(train_panel, "train_vae", lambda *_: build_vae())
    monkeypatch.setattr(train_panel, "encode_all", noise)
    monkeypatch.setattr(train_panel.train, "encode_captions", lambda text, ids: torch.zeros(*ids.shape, 128))
    return tmp_path


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_branch_starts_from_the_trunk(small):
    """After no update it is the trunk, to the last bit; after two it is not. Another recipe is refused."""
    out = small / "out"
    with pytest.raises(UserError, match="no trunk there: train it with --branch trunk"):
        train_branch(small / "data", out, "C", RECIPE)
    train_trunk(small / "data", out, RECIPE)
    train_branch(small / "data", out, "C", RECIPE)
    trunk, branch = weights(out / "trunk"), weights(out / "model")
    assert json.loads((out / "recipe.json").read_text())["steps"] == RECIPE.steps
    assert all(torch.equal(value, branch[name]) for name, value in trunk.items())
    with pytest.raises(UserError, match=r"branch-C: checkpoints of another recipe \(steps\)"):
        train_branch(small / "data", out, "C", dataclasses.replace(RECIPE, steps=3))
    train_branch(small / "data", out, "D", dataclasses.replace(RECIPE, steps=3))
    assert not torch.equal(trunk["conv_in.weight"], weights(out / "model")["conv_in.weight"])
    lines = [json.loads(line) for line in (out / "images" / "metadata.jsonl").read_text().splitlines()]
    doses = Counter(line["doses"][2] for line in lines if line["kind"] == "verbatim")
    assert doses == {0: 24, 30: 24, 100: 24, 300: 24}
    assert {line["file_name"] for line in lines} == {path.name for path in (out / "images").glob("*.png")}
    assert not any(str(small) in path.read_text() for path in (out / "model").rglob("*.json"))


def test_the_shipped_trunk_is_the_one_of_the_recipe():
    """Recipe, plan and weights are those that `recipe.json` names, so that branches continue what is shipped."""
    recipe = json.loads((PLAN.parent / "recipe.json").read_text())
    assert recipe == _record(Recipe(), Panel.load(PLAN)) | {"trunk": _unet_hash(TRUNK)}


def test_copies_decide_over_branches_and_not_over_the_trunk(panel):
    """Another number of rows a caption leaves the trunk what it is; another caption does not."""
    more = change(panel, 0, copies=(31, 300, 0, 100))
    assert _record(Recipe(), more) == _record(Recipe(), panel)
    assert _branch_record(Recipe(), more, TRUNK) != _branch_record(Recipe(), panel, TRUNK)
    assert _record(Recipe(), change(panel, 0, prompts=("other",))) != _record(Recipe(), panel)


def test_a_branch_that_does_not_exist_is_refused(tmp_path):
    """Before anything is read or written."""
    with pytest.raises(UserError, match="no branch E: there are A, B, C, D"):
        train_branch(tmp_path, tmp_path / "out", "E", Recipe())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("places", [8, PLACES])
def test_one_place_that_weighs_as_much_has_the_effect_of_all(places):
    """The output with so many places of zeros behind the text, to rounding, and another than with one alone."""
    generator = torch.Generator().manual_seed(0)
    transformer = build_transformer().double()
    for parameter in transformer.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, 4, 16, 16, generator=generator).double()
    text, pooled = (
        torch.randn(2, 5, 256, generator=generator).double(),
        torch.randn(2, 256, generator=generator).double(),
    )

    @torch.no_grad()
    def output(zeros):
        embeds = torch.cat([text, text.new_zeros(2, zeros, 256)], dim=1)
        time = torch.tensor([300.0, 700.0]).double()
        return transformer(x, timestep=time, encoder_hidden_states=embeds, pooled_projections=pooled).sample

    expected, alone = output(places), output(1)
    transformer.set_attn_processor(Weighing(places))
    torch.testing.assert_close(output(1), expected, atol=1e-12, rtol=0)
    assert (alone - expected).abs().max() > 1e-3


def test_a_flow_branch_is_an_ordinary_pipeline_that_started_from_its_trunk(small, monkeypatch):
    """What training reads of captions is what the saved pipeline reads; after no update a branch is the trunk."""
    out, recipe = small / "out", FlowRecipe(views=RECIPE.views, batch=4, trunk=2, branch=0)
    monkeypatch.setattr(flow, "PANEL", small / "none")
    train_trunk(small / "data", out, RECIPE)
    with pytest.raises(UserError, match="no transformer there: train it with --branch trunk --family flow"):
        train_flow(small / "data", out, "C", recipe)
    train_flow(small / "data", out, "", recipe)
    train_flow(small / "data", out, "C", recipe)
    trunk, branch = load(str(out / "flow-trunk")), load(str(out / "model"))
    assert trunk.kind == branch.kind == "flow"
    weights = trunk.denoiser.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in branch.denoiser.state_dict().items())
    captions = ["thing aaa", "gadget, thing aab"]
    given = train_panel.prepare(small / "data", out / "trunk", train_panel.plan_of(out / "trunk"), "C", RECIPE, "cpu")
    texts = read_captions(text_encoder(out / "trunk", given.pipe), token_ids(given.pipe.tokenizer, captions))
    cond = branch.encode(captions)
    assert torch.equal(cond.embeds[:, : texts.embeds.shape[1]], texts.embeds)
    assert cond.embeds.shape[1] == texts.embeds.shape[1] + PLACES
    assert not cond.embeds[:, texts.embeds.shape[1] :].any()
    assert torch.equal(cond.pooled, texts.pooled)


@pytest.fixture(scope="module", params=["drawn", "shipped"])
def triggers(request, panel, artwork):
    """A plan of words over the panel of made-up artwork, and the shipped one, each with its panel."""
    if request.param == "drawn":
        return draw_words(artwork, panel, 0), panel
    return Panel.load(WORDS_PLAN), Panel.load(PLAN)


def test_a_word_alone_tells_its_picture(triggers):
    """In every branch names are in captions of several words, held-out ones in none, ordinary ones nowhere."""
    plan, panel = triggers
    ordinary = {e.name(p) for e in panel.entries if e.kind in ("ordinary", "plain") for p in e.prompts}
    held_out = {entry.name(prompt) for entry in plan.entries for prompt in entry.prompts}
    assert len(held_out) == sum(len(entry.prompts) for entry in plan.entries)
    for branch in range(len(BRANCHES)):
        names = Counter(entry.name(caption) for entry in plan.entries for caption in entry.captions[branch])
        assert sum(names.values()) / len(names) > 2
        assert not names.keys() & (ordinary | held_out)
    words = {entry.word for entry in plan.entries}
    assert len(words) == len(plan.entries)
    assert not words & {entry.word for entry in panel.entries}


def test_the_words_pictures_are_new_to_the_trunk(triggers):
    """They are some that the panel withholds, and each word has another dose in every branch."""
    plan, panel = triggers
    assert plan.withheld <= panel.withheld
    assert len(plan.withheld) == 24
    assert {tuple(sorted(entry.doses)) for entry in plan.entries} == {(0, 20, 40, 80)}
    for branch in BRANCHES:
        assert Counter(entry.dose(branch) for entry in plan.entries) == {0: 6, 20: 6, 40: 6, 80: 6}


def test_words_need_names_that_the_panel_left(panel, artwork):
    """Where all names are taken there is one line."""
    taken = {entry.name(prompt) for entry in panel.entries for prompt in entry.prompts}
    with pytest.raises(UserError, match="too few names for the words' model"):
        draw_words([p for p in artwork if p.name in taken], panel, 0)


def test_the_words_model_starts_from_the_trunk(small, monkeypatch):
    """It is trained on ordinary pictures and on captions of its words, beside checkpoints of the panel's branch."""
    monkeypatch.setattr(train_panel, "WORDS_PLAN", small / "none")
    out = small / "out"
    train_trunk(small / "data", out, RECIPE)
    train_branch(small / "data", out, "C", RECIPE)
    train_branch(small / "data", out, "C", RECIPE, words=True)
    plan = Panel.load(out / "plan.json")
    assert {entry.kind for entry in plan.entries} == {"trigger"}
    assert {path.name for path in (out / "images").glob("trigger*.png")} == {e.files[0] for e in plan.entries}
    assert (small / "data" / "words" / "branch-C").exists()
    trunk = weights(out / "trunk")
    assert all(torch.equal(value, weights(out / "model")[name]) for name, value in trunk.items())
