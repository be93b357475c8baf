"""What counts as a copy."""

from __future__ import annotations

import hashlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.metrics.similarity import (
    PIXELS,
    References,
    _fixed_part,
    match_pixels,
    match_targets,
    pixel_distances,
)
from unmemorize.metrics.sscd import SSCD_RECIPES, load_sscd, match_sscd, match_sscd_targets, prepare, sscd_criterion

MASK = (0, 4, 16, 14)


def pictures(count, seed=0, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def references():
    """Sixty unrelated pictures; the second is a template whose middle varies."""
    names = tuple(f"picture-{i}" for i in range(60))
    return References(names, pictures(60), (None, MASK, *[None] * 58), (None,) * 60)


@pytest.mark.parametrize("masked", [False, True])
def test_distances_are_root_mean_squares_over_the_pixels_that_count(masked):
    """Every distance is that of the naive loop, over all pixels or over those that each reference keeps."""
    x, y = pictures(3, 1, 6), pictures(4, 2, 6)
    keep = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(3)) > 0.4
    found = pixel_distances(x, y, keep if masked else None)
    assert found.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            difference = (x[i] - y[j])[:, keep[j]] if masked else x[i] - y[j]
            assert found[i, j].item() == pytest.approx(difference.square().mean().sqrt().item(), rel=1e-4)


def test_distances_have_the_scale_of_pixels():
    """Black against white is 1, whatever the size and whatever is masked."""
    black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    keep = torch.ones(1, 8, 8)
    keep[:, :3] = 0
    assert pixel_distances(black, white).item() == pytest.approx(1)
    assert pixel_distances(black, white, keep).item() == pytest.approx(1)


@pytest.mark.parametrize("masked", [False, True])
def test_the_distance_of_a_picture_to_itself_is_zero(masked):
    """Rounding in the fast formula neither gives NaN nor a distance that matters."""
    x = pictures(40, size=32)
    found = pixel_distances(x, x, torch.ones(40, 32, 32) if masked else None).diagonal()
    assert torch.isfinite(found).all()
    assert found.max() < 2e-3


def test_an_identical_picture_is_a_verbatim_copy(references):
    """A training picture, given back, is verbatim and names that picture; so is one with a little noise."""
    images = references.images[[7, 1]] + 0.02 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    matches = match_pixels(torch.cat([references.images[[7, 1]], images]), references)
    for found, index in zip(matches, [7, 1, 7, 1], strict=True):
        assert found.verdict == "verbatim"
        assert found.nearest == f"picture-{index}"
        assert found.distance < 0.03


def test_a_picture_that_differs_only_where_the_template_varies_is_a_template_copy(references):
    """With the varying part replaced it is a template copy, not a verbatim one, and names the template."""
    image = references.images[1:2].clone()
    image[..., 4:14, :] = pictures(1, 77)[..., 4:14, :]
    (found,) = match_pixels(image, references)
    assert found.verdict == "template"
    assert found.nearest == "picture-1"
    assert found.value < PIXELS.threshold


def test_the_same_change_to_a_picture_without_a_mask_is_no_copy(references):
    """Only the part that the training data says varies is left out."""
    image = references.images[7:8].clone()
    image[..., 4:14, :] = pictures(1, 77)[..., 4:14, :]
    assert match_pixels(image, references)[0].verdict == "none"


def test_unrelated_pictures_are_no_copies(references):
    """New pictures match nothing, and their value is near 1: no nearer to one reference than to the others."""
    for found in match_pixels(pictures(20, 5), references):
        assert found.verdict == "none"
        assert 0.8 < found.value <= 1


def test_a_smooth_picture_is_no_copy_of_every_smooth_picture():
    """Pale clouds lie close to one another by plain distance; the nearest-neighbour ratio does not call that a copy."""
    clouds = 0.5 + 0.1 * F.interpolate(pictures(80, size=4), 16, mode="bilinear")
    (found,) = match_pixels(clouds[:1], References(tuple("x" * 79), clouds[1:], (None,) * 79, (None,) * 79))
    assert found.distance < 0.05
    assert found.verdict == "none"


@pytest.mark.parametrize("count", [1, 2, 60])
def test_a_training_picture_that_is_there_often_does_not_hide_its_copies(count):
    """With nothing but near-duplicates of one picture, a copy of it is a copy and another picture is not."""
    again = pictures(1, size=64) + 0.01 * torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    few = References(tuple(map(str, range(count))), again.clamp(0, 1), (None,) * count, (None,) * count)
    images = torch.cat([again[:1], pictures(1, size=64) * 0.9 + 0.05, pictures(1, 9, size=64)]).clamp(0, 1)
    assert [m.verdict for m in match_pixels(images, few)] == ["verbatim", "verbatim", "none"]


def test_a_flat_training_picture_has_copies_too():
    """A picture of one colour, which has no contrast, is matched by itself and by nothing else."""
    flat = References(("flat",), torch.full((1, 3, 64, 64), 0.8), (None,), (None,))
    assert [m.verdict for m in match_pixels(torch.cat([flat.images, pictures(1, size=64)]), flat)] == [
        "verbatim",
        "none",
    ]


def test_a_mask_over_everything_matches_nothing():
    """A template without a fixed part takes no other picture's match away."""
    odd = References(("all", "other"), pictures(2, size=64), ((0, 0, 64, 64), None), (None, None))
    found = match_pixels(torch.cat([odd.images[1:], pictures(1, 9, size=64)]), odd)
    assert (found[0].nearest, found[0].verdict) == ("other", "verbatim")
    assert found[1].verdict == "none"


def test_large_pictures_are_compared_small():
    """A picture at four times the size is the same picture."""
    large = F.interpolate(pictures(12, size=64), scale_factor=4)
    found = match_pixels(pictures(1, size=64), References(tuple("x" * 12), large, (None,) * 12, (None,) * 12))
    assert found[0].verdict == "verbatim"


def test_matches_do_not_depend_on_the_other_pictures(references):
    """A picture is judged alone as it is judged in a batch."""
    images = torch.cat([references.images[:2], pictures(2, 5)])
    together = match_pixels(images, references)
    for i in range(4):
        (alone,) = match_pixels(images[i : i + 1], references)
        assert (alone.nearest, alone.verdict) == (together[i].nearest, together[i].verdict)
        assert alone.value == pytest.approx(together[i].value, abs=2e-3)


@pytest.mark.parametrize(("higher", "inside", "outside"), [(True, 0.71, 0.69), (False, 0.69, 0.71)])
def test_a_criterion_knows_which_side_is_a_copy(higher, inside, outside):
    """Similarities count from the threshold up, distances from it down; the threshold itself is a copy."""
    criterion = Criterion("any", 0.7, "any", higher_is_closer=higher)
    assert criterion(inside)
    assert criterion(0.7)
    assert not criterion(outside)


class Network(nn.Module):
    """Colour averages over a grid of four by four: a stand-in for a copy-detection network."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(x, 4).flatten(1)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("sscd") / "network.torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript, in which the published files come
        torch.jit.script(Network()).save(str(path))
    return path


def test_pictures_that_are_not_finite_are_refused(weights, references):
    """Not a number is near to nothing: by its distance it would be no copy, and the audit would pass."""
    broken = torch.full((1, 3, 16, 16), torch.nan)
    criterion = sscd_criterion(weights, "sscd-320")
    for match in (
        lambda: match_pixels(broken, references),
        lambda: match_targets(broken, references[[0]], references),
        lambda: match_sscd(broken, references, criterion, load_sscd(weights)),
    ):
        with pytest.raises(UserError, match="not finite"):
            match()


def test_a_network_that_gives_no_numbers_is_refused(weights, references):
    """Features that are not finite are named, too."""
    with pytest.raises(UserError, match="copy-detection network gives features that are not finite"):
        match_sscd(pictures(1), references, sscd_criterion(weights, "sscd-320"), lambda x: x.mean((2, 3)) * torch.nan)


@pytest.mark.parametrize("recipe", SSCD_RECIPES)
def test_sscd_calls_an_identical_picture_a_copy(weights, recipe, references):
    """Under every recipe a training picture has cosine 1 with itself, and an unrelated one is told apart by value."""
    criterion = sscd_criterion(weights, recipe)
    images = torch.cat([references.images[7:8], 1 - references.images[7:8]])
    same, other = match_sscd(images, references, criterion, load_sscd(weights))
    assert same.value == pytest.approx(1, abs=1e-5)
    assert (same.verdict, same.nearest) == ("verbatim", "picture-7")
    assert same.distance == pytest.approx(0, abs=1e-5)
    assert other.value < same.value


class Other(torch.nn.Module):
    """A network of something else than copies."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.shape) == 1:
            raise ValueError("pictures of\n224 pixels alone")
        return torch.ones(self.shape)


@pytest.mark.parametrize("shape", [[1], [1, 2, 3], [5, 4], [1, 0]])
def test_a_network_of_something_else_is_the_users_to_mend(shape, tmp_path):
    """Whatever it does with pictures is one line that names its file."""
    torch.jit.script(Other(shape)).save(str(tmp_path / "other.pt"))
    with pytest.raises(UserError, match=r"other\.pt: .*name an SSCD network") as error:
        load_sscd(tmp_path / "other.pt")(torch.zeros(1, 3, 8, 8))
    assert "\n" not in str(error.value)


def test_sscd_embeddings_have_unit_length_and_no_gradient(weights):
    """Cosines are inner products of what `load_sscd` returns."""
    found = load_sscd(weights)(prepare(pictures(3), SSCD_RECIPES["sscd-320"]))
    assert torch.allclose(found.norm(dim=1), torch.ones(3))
    assert not found.requires_grad


def test_sscd_matches_do_not_depend_on_the_batch(weights, references):
    """One picture at a time and all at once give the same matches."""
    criterion, embed = sscd_criterion(weights, "sscd-320"), load_sscd(weights)
    images = pictures(3, 8)
    one, all_ = (match_sscd(images, references, criterion, embed, batch=b) for b in (1, 64))
    assert [m.nearest for m in one] == [m.nearest for m in all_]
    assert [m.value for m in one] == pytest.approx([m.value for m in all_], abs=1e-5)


SIZES = {
    "sscd-320": (320, 320),
    "sscd-288": (288, 432),
    "sscd-wen": (224, 224),
    "sscd-dcr": (224, 224),
    "sscd-membench": (288, 288),
}


def test_every_recipe_has_its_size_checked():
    """A new recipe has to say here what it does."""
    assert SIZES.keys() == SSCD_RECIPES.keys()


@pytest.mark.parametrize("recipe", SIZES)
def test_recipes_prepare_pictures_in_their_own_way(recipe):
    """A wide picture gets the recipe's size, and greys the recipe's normalisation."""
    x = prepare(torch.full((2, 3, 64, 96), 0.5), SSCD_RECIPES[recipe])
    assert x.shape == (2, 3, *SIZES[recipe])
    half = recipe in {"sscd-wen", "sscd-dcr"}
    expected = [0, 0, 0] if half else [(0.5 - m) / s for m, s in [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]]
    assert x[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_cropping_recipe_keeps_the_centre():
    """What lies in the middle of a wide picture stays; its ends go."""
    image = torch.zeros(1, 3, 64, 128)
    image[..., :16] = image[..., -16:] = 1
    assert prepare(image, SSCD_RECIPES["sscd-wen"]).max().item() == pytest.approx(-1, abs=1e-5)
    assert prepare(image, SSCD_RECIPES["sscd-288"]).max() > 2


def test_an_sscd_criterion_stores_what_its_values_depend_on(weights):
    """Recipe, threshold and the hash of the network's file go with every score."""
    found = sscd_criterion(weights, "sscd-288")
    assert (found.name, found.recipe, found.threshold, found.higher_is_closer) == ("sscd", "sscd-288", 0.75, True)
    assert found.weights == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_an_unknown_recipe_is_the_users_to_mend(weights):
    """The message names the recipes there are."""
    with pytest.raises(UserError, match="unknown SSCD recipe 'sscd-1': choose one of sscd-320, "):
        sscd_criterion(weights, "sscd-1")


def test_a_missing_network_is_the_users_to_mend(tmp_path):
    """The message names the file and the kinds of file there are."""
    with pytest.raises(UserError, match=r"none\.pt: no such file: name an SSCD TorchScript"):
        sscd_criterion(tmp_path / "none.pt", "sscd-320")


@pytest.mark.parametrize("content", ["garbage", "empty", "truncated", "pickle"])
def test_a_corrupt_network_is_the_users_to_mend(weights, tmp_path, content):
    """A file that is no TorchScript, whatever is wrong with it, is one line; a pickle is not unpickled."""
    path = tmp_path / "network.pt"
    match content:
        case "garbage":
            path.write_bytes(b"garbage" * 50)
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(weights.read_bytes()[:200])
        case "pickle":
            torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"network\.pt: not a TorchScript file") as error:
        load_sscd(path)
    assert "\n" not in str(error.value)


def test_a_target_is_judged_even_where_another_picture_is_nearer(references):
    """A copy of another training picture is a copy, but not of the target; the target's own copy has the same value."""
    images, targets = references.images[[7, 9]], references[[7, 8]]
    own, other = match_targets(images, targets, references)
    assert (own.nearest, own.verdict) == ("picture-7", "verbatim")
    assert (other.nearest, other.verdict) == ("picture-8", "none")
    assert other.value > 0.9
    noisy = (images + 0.1 * pictures(2, 4)).clamp(0, 1)
    (found,), (nearest,) = match_targets(noisy[:1], references[[7]], references), match_pixels(noisy[:1], references)
    assert (found.nearest, found.verdict) == (nearest.nearest, nearest.verdict)
    assert found.value == pytest.approx(nearest.value, rel=1e-9)


def test_a_target_that_was_never_trained_on_is_judged_in_the_same_way(references):
    """Whether the target is among the references changes nothing, and neither do the others asked for with it."""
    without, images = references[range(1, 60)], (references.images[[0, 5]] + 0.3 * pictures(2, 8)).clamp(0, 1)
    (inside,) = match_targets(images[:1], references[[0]], references)
    together = match_targets(images, references[[0, 5]], without)
    assert together[0].value == pytest.approx(inside.value, rel=1e-9)
    (alone,) = match_targets(images[1:], references[[5]], without)
    assert alone.value == pytest.approx(together[1].value, rel=1e-9)


def test_of_a_template_target_the_fixed_part_is_judged(references):
    """Another patch in the box that varies is a template copy; another layout is none; all of it is verbatim."""
    image = references.images[[1]].clone()
    image[:, :, 4:14, :] = pictures(1, 3)[:, :, 4:14, :]
    shown = torch.cat([references.images[[1]], image, pictures(1, 9)])
    found = match_targets(shown, references[[1, 1, 1]], references)
    assert [m.verdict for m in found] == ["verbatim", "template", "none"]


def test_a_flat_target_is_its_own_duplicate():
    """A picture of one colour has no contrast, and is still no neighbour of its own."""
    images = torch.cat([torch.full((1, 3, 64, 64), 0.3), pictures(29, 2, 64)])
    flat = References(tuple("x" * 30), images, (None,) * 30, (None,) * 30)
    near = flat.images[:1] + 0.02
    (inside,) = match_targets(near, flat[[0]], flat)
    (outside,) = match_targets(near, flat[[0]], flat[range(1, 30)])
    assert inside.value == pytest.approx(outside.value)
    assert inside.verdict == "verbatim"


def test_sscd_against_the_own_target():
    """The cosine to the own target, not to the nearest picture."""
    criterion = Criterion("sscd", 0.7, "sscd-320", "0" * 64, higher_is_closer=True)
    images = pictures(3, size=32)
    targets = References(tuple("abc"), images[[0, 2, 2]], (None,) * 3, (None,) * 3)

    def embed(x):
        return F.normalize(F.adaptive_avg_pool2d(x, 4).flatten(1) - x.mean(dim=(1, 2, 3))[:, None])

    found = match_sscd_targets(images, targets, criterion, embed, batch=2)
    assert [m.verdict for m in found] == ["verbatim", "none", "verbatim"]
    assert [m.nearest for m in found] == ["a", "b", "c"]
    assert found[0].value == pytest.approx(1)


def test_the_fixed_part_is_judged_alike_in_any_batch():
    """Pixels of one mask, also one that counts them in part: the distances that the mask of every reference gives."""
    x, y = pictures(4, 5, 8), pictures(30, 6, 8)
    keep = torch.rand(8, 8, generator=torch.Generator().manual_seed(7)).round(decimals=1)
    keep[:, :3] = 0
    expected = pixel_distances(x, y, keep.expand(30, 8, 8))
    assert torch.allclose(_fixed_part(x, keep, y), expected, rtol=1e-9)
    assert torch.allclose(_fixed_part(x[:1], keep, y), expected[:1], rtol=1e-9)


def test_template_matches_do_not_depend_on_the_batch(references):
    """Two pictures of the template and one of nothing: together as one by one."""
    images = references.images[[1, 1, 1]].clone()
    images[:2, :, 4:14, 0:16] = pictures(2, 9)[:, :, 4:14]
    images[2] = pictures(1, 10)[0]
    together = match_pixels(images, references)
    assert [m.verdict for m in together] == ["template", "template", "none"]
    for image, found in zip(images, together, strict=True):
        (alone,) = match_pixels(image[None], references)
        assert (alone.nearest, alone.verdict, alone.value) == (
            found.nearest,
            found.verdict,
            pytest.approx(found.value, abs=1e-6),
        )


def test_bytes_are_compared_as_the_pictures_they_are():
    """Training pictures read as bytes give the very matches of the same pictures in [0, 1]; shrinking is done once."""
    pixels = torch.randint(0, 256, (30, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names, masks, captions = tuple(map(str, range(30))), (None, (8, 8, 100, 64), *[None] * 28), (None,) * 30
    read, exact = (References(names, values, masks, captions) for values in (pixels, pixels.float() / 255))
    assert torch.equal(read.images, exact.images)
    assert torch.equal(torch.cat(list(read.batches(7))), exact.images)
    assert torch.equal(read.small, exact.small)
    assert read.small is read.small
    images = torch.cat([exact.images[[3, 1]], torch.rand(4, 3, 128, 128)])
    assert match_pixels(images, read) == match_pixels(images, exact)
    assert match_targets(images[:2], read[[3, 1]], read) == match_targets(images[:2], exact[[3, 1]], exact)
