"""Is this picture in the model? Scores of picture tests beside those of pictures of the same kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from unmemorize.core.batches import CODED, inverted
from unmemorize.core.errors import UserError
from unmemorize.core.methods import PictureTest, Subject, parse, spelled
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Pairs
from unmemorize.core.run import Progress, scratch
from unmemorize.core.shards import Row
from unmemorize.core.specs import CheckSpec
from unmemorize.data.bundle import Bundle, Size
from unmemorize.data.pictures import save_image
from unmemorize.metrics.calibrate import conformal_p_values, set_p_value
from unmemorize.metrics.complexity import png_sizes
from unmemorize.metrics.discovery import Floats, benjamini_hochberg
from unmemorize.metrics.similarity import References
from unmemorize.models.pipeline import PipelineModel
from unmemorize.report.check import build_check
from unmemorize.stages.detect import require_finite
from unmemorize.stages.inputs import bundle_of, load_as_asked
from unmemorize.study.controls import spread, without

ENOUGH = 20  # controls, below which no p-value is under 0.05
MATCHED = 0.25  # the share of the controls that are nearest in complexity,
FEWEST = 19  # and how many they are at the least
SET = 70  # pictures, and as many controls, from which they are tested as a set


@dataclass(frozen=True)
class Calibrated:
    """Scores of pictures beside those of controls: p-values among all controls and among equally complex ones, (n,)."""

    p: Floats
    matched: Floats

    @property
    def q(self) -> Floats:
        """The larger of the two, adjusted for how many pictures were asked about."""
        return benjamini_hochberg(np.maximum(self.p, self.matched))


@dataclass(frozen=True)
class Measured:
    """Pictures or controls as tests take them.

    Attributes:
        pictures: What was read.
        pairs: Their latents with captions.
        sizes: Bytes that each takes as a PNG, (n,): how complex it is.
    """

    pictures: References
    pairs: Pairs
    sizes: Floats

    @classmethod
    def of(cls, model: DiffusionModel, pictures: References, *, captioned: bool) -> Measured:
        """The pictures as the model has them; without captions all have the empty prompt."""
        latents = torch.cat([inverted(model, images) for images in pictures.batches(CODED)])
        prompts = pictures.prompts if captioned else [""] * len(pictures)
        sizes = torch.cat([png_sizes(images) for images in pictures.batches(CODED)])
        return cls(pictures, Pairs(latents, model.encode(prompts)), sizes.double().numpy())


@dataclass(frozen=True)
class _Result:
    """What one test said: scores of the pictures and of the controls, p-values, and denoiser evaluations.

    `set_p_value` is of all pictures together; None where there are too few.
    """

    test: PictureTest
    scores: Floats
    known: Floats
    calibrated: Calibrated
    set_p_value: float | None
    evaluations: int

    def row(self, picture: int) -> Row:
        """One picture's score and p-values."""
        return {
            "score": float(self.scores[picture]),
            "p_value": float(self.calibrated.p[picture]),
            "p_value_matched": float(self.calibrated.matched[picture]),
            "q_value": float(self.calibrated.q[picture]),
        }


def check(spec: CheckSpec, progress: Progress, page: Path | None = None) -> Row:
    """Score every picture with every test; returns them in order, with p-values against the controls.

    Where there are 70 of either, each test also has one p-value for all pictures together. With `page` a page of them
    is written to that file.

    Raises:
        UserError: The model, the pictures, the controls or a method cannot be used, or there are too few controls.
        NotApplicable: The model lacks what a test reads.
    """
    tests, model, pictures, controls = given_of(spec)
    captioned = all(pictures.captions) and all(controls.captions)
    asked_about = Measured.of(model, pictures, captioned=captioned)
    compared_with = Measured.of(model, controls, captioned=captioned)
    results = []
    for done, test in enumerate(tests):
        progress("check", done, len(tests))
        results.append(_tested(model, test, asked_about, compared_with, spec.numbers))
    progress("check", len(tests), len(tests))

    rows: list[Row] = []
    for i, name in enumerate(pictures.names):
        methods = {spelled(result.test): result.row(i) for result in results}
        rows.append({"picture": name, "complexity": int(asked_about.sizes[i]), "methods": methods})
    answer = {
        "model": model.name,
        "pictures": rows,
        "set": {spelled(result.test): result.set_p_value for result in results if result.set_p_value is not None},
        "known": {spelled(result.test): result.known.tolist() for result in results},
        "controls": len(controls),
        "captions": captioned,
        "evaluations": sum(result.evaluations for result in results),
    }
    if page is not None:
        _write_page(answer, pictures, page)
    return answer


def given_of(spec: CheckSpec) -> tuple[list[PictureTest], PipelineModel, References, References]:
    """The tests, the model, the pictures and the controls.

    Raises:
        UserError: One of them cannot be used, or there are too few controls.
    """
    tests: list[PictureTest] = [parse("picture-test", text) for text in dict.fromkeys(spec.method)]
    bundle = bundle_of(spec)
    if not spec.picture and bundle.own is None:
        raise UserError(f"{spec.model}: which picture? name its file after the model")
    model = load_as_asked(spec)
    pictures = _pictures(spec, bundle, model.image_size)
    return tests, model, pictures, _controls(spec, bundle, pictures, model.image_size)


def _write_page(answer: Row, pictures: References, page: Path) -> None:
    with scratch(page.parent) as folder:
        for i, image in enumerate(pictures.images):
            save_image(image, folder / f"{i}.png")
        build_check(answer, folder, page)


def _tested(
    model: DiffusionModel, test: PictureTest, pictures: Measured, controls: Measured, seeds: Sequence[int]
) -> _Result:
    """The pictures' scores by one test, beside those of the controls.

    Raises:
        UserError: Scores are not finite.
    """
    scores = test.score(Subject(model), pictures.pairs, seeds=seeds)
    of_controls = test.score(Subject(model), controls.pairs, seeds=seeds)
    for part in (scores, of_controls):
        require_finite(model.name, test, part)
    values, known = scores.value.numpy(), of_controls.value.numpy()
    return _Result(
        test=test,
        scores=values,
        known=known,
        calibrated=calibrated(values, known, pictures.sizes, controls.sizes),
        set_p_value=set_p_value(values.tolist(), known.tolist()) if min(len(values), len(known)) >= SET else None,
        evaluations=scores.evaluations + of_controls.evaluations,
    )


def _pictures(spec: CheckSpec, bundle: Bundle, size: Size) -> References:
    """The pictures that are named; of the model's own those that were planted often.

    Raises:
        UserError: They cannot be read.
    """
    if not spec.picture:
        return bundle.targets(size)
    parts = []
    for path in spec.picture:
        part = bundle.read(path, size)
        if not Path(path).is_dir():
            part = replace(part, names=(path,) * len(part))  # a single file is known by the path that was typed
        parts.append(part)
    return References.joined(parts)


def _controls(spec: CheckSpec, bundle: Bundle, pictures: References, size: Size) -> References:
    """The controls, without the pictures that are asked about.

    Raises:
        UserError: They cannot be read, or there are too few.
    """
    unseen = None if "controls" in bundle.files else bundle.held_out(size)
    controls = without(bundle.controls(size) if unseen is None else unseen, pictures)
    controls = spread(controls, spec.limit or len(controls))
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
