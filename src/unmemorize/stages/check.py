"""Is this picture in the model? Scores of picture tests beside those of pictures of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.methods import PictureTest, Subject, parse, spelled
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Pairs, Scores
from unmemorize.core.run import Progress, scratch
from unmemorize.core.specs import CheckSpec
from unmemorize.data.bundle import Bundle, Size
from unmemorize.data.pictures import save_image
from unmemorize.metrics.calibrate import conformal_p_values, set_p_value
from unmemorize.metrics.complexity import png_sizes
from unmemorize.metrics.discovery import Floats, benjamini_hochberg
from unmemorize.metrics.similarity import References
from unmemorize.report.check import build_check
from unmemorize.stages.inputs import bundle_of, load_as_asked
from unmemorize.study.controls import spread

ENOUGH = 20  # controls, below which no p-value is under 0.05
MATCHED = 0.25  # the share of the controls that are nearest in complexity,
FEWEST = 19  # and how many they are at the least
SET = 70  # pictures, and as many controls, from which they are tested as a set
ROWS = 16  # pictures that the VAE codes together


@dataclass(frozen=True)
class Calibrated:
    """Scores of pictures beside those of controls: p-values among all controls and among equally complex ones, (n,)."""

    p: Floats
    matched: Floats

    @property
    def q(self) -> Floats:
        """The larger of the two, adjusted for how many pictures were asked about."""
        return benjamini_hochberg(np.maximum(self.p, self.matched))


def check(spec: CheckSpec, progress: Progress, page: Path | None = None) -> dict[str, Any]:
    """Score every picture with every test; returns them in order, with p-values against the controls.

    Where there are 70 of either, each test also has one p-value for all pictures together. With `page` a page of them
    is written to that file.

    Raises:
        UserError: The model, the pictures, the controls or a method cannot be used, or there are too few controls.
        NotApplicable: The model lacks what a test reads.
    """
    tests: list[PictureTest] = [parse("picture-test", text) for text in dict.fromkeys(spec.method)]
    bundle = bundle_of(spec)
    if not spec.picture and bundle.own is None:
        raise UserError(f"{spec.model}: which picture? name its file after the model")
    model = load_as_asked(spec)
    pictures = asked_about(spec, bundle, model.image_size)
    controls = controls_of(spec, bundle, pictures, model.image_size)
    captioned = all((*pictures.captions, *controls.captions))
    pairs = [_pairs(model, some, captioned) for some in (pictures, controls)]
    sizes = [_complexity(some) for some in (pictures, controls)]
    results = []
    for done, test in enumerate(tests):
        progress("check", done, len(tests))
        scores, others = (test.score(Subject(model), some, seeds=spec.numbers) for some in pairs)
        _require_finite(model, scores, others)
        values, known = scores.value.numpy(), others.value.numpy()
        as_set = set_p_value(values.tolist(), known.tolist()) if min(len(values), len(known)) >= SET else None
        results.append((scores, others, calibrated(values, known, *sizes), as_set))
    progress("check", len(tests), len(tests))
    found = {
        "model": model.name,
        "pictures": [
            {
                "picture": name,
                "complexity": int(sizes[0][row]),
                "methods": {
                    spelled(test): {
                        "score": float(scores.value[row]),
                        "p_value": float(found.p[row]),
                        "p_value_matched": float(found.matched[row]),
                        "q_value": float(found.q[row]),
                    }
                    for test, (scores, _, found, _) in zip(tests, results, strict=True)
                },
            }
            for row, name in enumerate(pictures.names)
        ],
        "set": {spelled(test): p for test, (*_, p) in zip(tests, results, strict=True) if p is not None},
        "known": {spelled(test): others.value.tolist() for test, (_, others, *_) in zip(tests, results, strict=True)},
        "controls": len(controls),
        "captions": captioned,
        "evaluations": sum(scores.evaluations + others.evaluations for scores, others, *_ in results),
    }
    if page is not None:
        with scratch(page.parent) as folder:
            for row, image in enumerate(pictures.images):
                save_image(image, folder / f"{row}.png")
            build_check(found, folder, page)
    return found


def asked_about(spec: CheckSpec, bundle: Bundle, size: Size) -> References:
    """The pictures that are named; of the model's own those that were planted often.

    Raises:
        UserError: They cannot be read.
    """
    if not spec.picture:
        return bundle.targets(size)
    parts = [bundle.read(path, size) for path in spec.picture]
    names = [
        name if Path(path).is_dir() else path
        for path, part in zip(spec.picture, parts, strict=True)
        for name in part.names
    ]
    return References(
        tuple(names),
        torch.cat([part.pixels for part in parts]),
        tuple(mask for part in parts for mask in part.masks),
        tuple(caption for part in parts for caption in part.captions),
    )


def controls_of(spec: CheckSpec, bundle: Bundle, pictures: References, size: Size) -> References:
    """The controls, without the pictures that are asked about.

    Raises:
        UserError: They cannot be read, or there are too few.
    """
    controls = bundle.controls(size)
    other = [
        i for i, pixels in enumerate(controls.pixels) if not any(torch.equal(pixels, own) for own in pictures.pixels)
    ]
    controls = spread(controls[other], spec.limit or len(other))
    if len(controls) < ENOUGH:
        source = bundle.source("controls")
        raise UserError(f"{source}: {len(controls)} controls, and p-values need {ENOUGH}: name more with --controls")
    return controls


def calibrated(scores: Floats, known: Floats, sizes: Floats, known_sizes: Floats) -> Calibrated:
    """P-values of scores (n,) against those of controls (m,), all of them and those nearest in size."""
    nearest = max(FEWEST, round(MATCHED * len(known)))
    matched = []
    for score, size in zip(scores, sizes, strict=True):
        near = np.argsort(np.abs(np.log(known_sizes / size)), kind="stable")[:nearest]
        matched.append(conformal_p_values([float(score)], known[near].tolist())[0])
    return Calibrated(conformal_p_values(scores.tolist(), known.tolist()), np.array(matched))


def _pairs(model: DiffusionModel, pictures: References, captioned: bool) -> Pairs:
    """Latents, and captions where all pictures have one."""
    with torch.no_grad():
        latents = [model.invert(images) for images in pictures.batches(ROWS)]
    captions = [caption or "" for caption in pictures.captions] if captioned else [""] * len(pictures)
    return Pairs(torch.cat(latents), model.encode(captions))


def _complexity(pictures: References) -> Floats:
    sizes: Tensor = torch.cat([png_sizes(images) for images in pictures.batches(ROWS)])
    values: Floats = sizes.double().numpy()
    return values


def _require_finite(model: DiffusionModel, *scores: Scores) -> None:
    if not all(part.by_seed.isfinite().all() for part in scores):
        raise UserError(f"{model.name}: its predictions are not finite: load it in a wider dtype")
