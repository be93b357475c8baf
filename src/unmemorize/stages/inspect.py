"""One prompt at a time, for a person who adjusts it: score, words, pictures, with and without a guard."""

from __future__ import annotations

import copy
import itertools
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.results import Explanation, Match, Regions
from unmemorize.core.run import Progress
from unmemorize.core.sample import generators
from unmemorize.core.specs import InspectSpec
from unmemorize.detect.noise import NoiseGap
from unmemorize.explain.gradient import Gradient
from unmemorize.metrics.calibrate import conformal_threshold
from unmemorize.metrics.similarity import References, match_pixels, with_mirrored
from unmemorize.models.pipeline import PipelineModel
from unmemorize.stages.explain import brightness, explainer_saying
from unmemorize.stages.guard import Guard, Outcome
from unmemorize.stages.inputs import Inputs, subject_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FALSE_ALARMS = 0.01
KEPT = 8  # sets of pictures remembered: switching the guard on and off makes none again


@dataclass(frozen=True)
class Score:
    """A prompt's magnitude at the first step, seed by seed, beside the threshold that ordinary prompts gave."""

    prompt: str
    values: tuple[float, ...]
    threshold: float

    @property
    def mean(self) -> float:
        """The score: the mean over the seeds."""
        return sum(self.values) / len(self.values)

    @property
    def memorized(self) -> bool:
        """Whether the score is over the threshold."""
        return self.mean > self.threshold


@dataclass(frozen=True)
class Nearest:
    """The training picture that a generated one is nearest to."""

    match: Match
    image: Tensor
    caption: str | None


@dataclass(frozen=True)
class Picture:
    """A generated picture (3, h, w) in [0, 1].

    `nearest` is None where no training pictures are known, and `map`, a picture of where its memory shows, where none
    was asked for.
    """

    seed: int
    image: Tensor
    nearest: Nearest | None
    map: Tensor | None = None

    @property
    def copied(self) -> bool:
        """Whether it is a copy of a training picture."""
        return self.nearest is not None and self.nearest.match.copied


@dataclass(frozen=True)
class Pictures:
    """A prompt's pictures, one a seed; `outcome` is what the guard saw and did, where there was one."""

    prompt: str
    pictures: tuple[Picture, ...]
    outcome: Outcome | None = None


class Inspector:
    """A loaded model that answers about prompts, from any thread.

    Scores go on while pictures are made: the two use separate pipelines over the same weights. The weights stay frozen.
    """

    def __init__(
        self,
        model: PipelineModel,
        ordinary: Sequence[str],
        spec: InspectSpec,
        *,
        references: References | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        # For good: two threads that freeze and restore the same weights would restore each other's state.
        model.denoiser.eval().requires_grad_(False)
        self.spec, self.references = spec, references
        self._model = model
        self._scoring, self._making = threading.Lock(), threading.Lock()
        self._made: dict[tuple[str, bool], Pictures] = {}
        self._subject = subject_of(spec, model)
        self._detect = NoiseGap().ready(self._subject, seeds=spec.numbers)
        self.ordinary, self.seconds = self._calibrate(ordinary, progress)
        self.threshold = conformal_threshold(self.ordinary, false_alarms=FALSE_ALARMS)
        self._pipe = _apart(model)
        self._guard = Guard(self._pipe, ordinary=ordinary, false_alarms=FALSE_ALARMS)
        progress("guard", 0, 1)
        self._run(self._guard, "", _first_step_only)  # calibrates the guard
        progress("guard", 1, 1)

    def score(self, prompt: str) -> Score:
        """The prompt's score: one evaluation a seed.

        Raises:
            UserError: The prompt is empty.
        """
        _check(prompt)
        with self._scoring:
            return Score(prompt, self._values([prompt])[0], self.threshold)

    def words(self, prompt: str) -> Explanation:
        """What each word contributes to the score: two evaluations a seed and a backward pass.

        Raises:
            UserError: The prompt is empty.
        """
        _check(prompt)
        with self._scoring:
            return Gradient().explain(self._subject, prompt, seeds=self.spec.numbers)

    def pictures(
        self, prompt: str, *, guarded: bool = False, progress: Progress = lambda stage, done, total: None
    ) -> Pictures:
        """The prompt's pictures, one a seed, each with its nearest training picture; remembered for a while.

        Raises:
            UserError: The prompt is empty.
        """
        _check(prompt)
        with self._making:
            if (prompt, guarded) not in self._made:
                self._made[prompt, guarded] = self._make(prompt, guarded, progress)
            while len(self._made) > KEPT:
                del self._made[next(iter(self._made))]
            return self._made[prompt, guarded]

    def _calibrate(self, ordinary: Sequence[str], progress: Progress) -> tuple[tuple[float, ...], float]:
        """The scores of ordinary prompts, in order of size, and the seconds one took."""
        scores: list[float] = []
        progress("calibrate", 0, len(ordinary))
        start = time.perf_counter()
        for at in range(0, len(ordinary), 8):
            scores += [math.fsum(values) / len(values) for values in self._values(ordinary[at : at + 8])]
            progress("calibrate", len(scores), len(ordinary))
        if not all(map(math.isfinite, scores)):
            raise UserError(f"{self._model.name}: its predictions are not finite: load it in a wider dtype")
        return tuple(sorted(scores)), (time.perf_counter() - start) / len(scores)

    def _values(self, prompts: Sequence[str]) -> list[tuple[float, ...]]:
        scores = self._detect(self._model.encode(prompts))
        return [tuple(row) for row in scores.by_seed.tolist()]

    def _make(self, prompt: str, guarded: bool, progress: Progress) -> Pictures:
        stage = "pictures with the guard" if guarded else "pictures"
        total = len(self._model.schedule(self.spec.steps).timesteps)
        progress(stage, 0, total)

        def count(pipe: Any, index: int, t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
            progress(stage, index + 1, total)
            return state

        images = self._run(self._guard if guarded else self._pipe, prompt, count).float().cpu()
        nearest = [None] * len(images) if self.references is None else _nearest(images, self.references)
        maps = [None] * len(images) if guarded or not self.spec.regions else self._maps(prompt, progress)
        rows = zip(range(self.spec.pictures), images, nearest, maps, strict=True)
        return Pictures(prompt, tuple(Picture(*row) for row in rows), self._guard.outcome if guarded else None)

    def _maps(self, prompt: str, progress: Progress) -> list[Tensor]:
        """A map of each picture without the guard, which samples them once more: scores wait."""
        explainer = explainer_saying("--regions", self.spec.regions, "regions")
        progress(explainer.name, 0, 1)
        with self._scoring:
            regions = explainer.explain(self._subject, prompt, seeds=range(self.spec.pictures))
        progress(explainer.name, 1, 1)
        assert isinstance(regions, Regions)  # it says regions
        return list(brightness(regions.maps, self._model.image_size))

    def _run(self, call: Any, prompt: str, callback: Any) -> Tensor:
        pictures: Tensor = call(
            [prompt] * self.spec.pictures,
            generator=generators(range(self.spec.pictures)),
            num_inference_steps=self.spec.steps,
            guidance_scale=self.spec.guidance,
            output_type="pt",
            callback_on_step_end=callback,
        ).images
        return pictures


def open_inspector(spec: InspectSpec, progress: Progress) -> Inspector:
    """Load the model and the training pictures, and calibrate on ordinary prompts.

    Raises:
        UserError: The model, the pictures or the ordinary prompts cannot be used.
        NotApplicable: There are too few ordinary prompts.
    """
    if spec.regions:
        explainer_saying("--regions", spec.regions, "regions")  # or a mistake would be told once all is calibrated
    inputs = Inputs.of(spec)
    model, bundle = inputs.model, inputs.bundle
    references = bundle.references(model.image_size) if bundle.has("references") else None
    return Inspector(model, bundle.ordinary(), inputs.spec, references=references, progress=progress)


def _check(prompt: str) -> None:
    if not prompt.strip():
        raise UserError("the prompt is empty: write at least a word")


def _apart(model: PipelineModel) -> DiffusionPipeline:
    """A second pipeline over the same weights, with everything of its own that a call hooks or changes."""
    pipe, own = model.pipe, {}
    for name, component in pipe.components.items():
        if component is model.denoiser:
            weights = {id(tensor): tensor for tensor in itertools.chain(component.parameters(), component.buffers())}
            own[name] = copy.deepcopy(component, weights)
        elif name == "scheduler" or name.startswith("tokenizer"):
            own[name] = copy.deepcopy(component)
    taken = signature(type(pipe)).parameters
    options = {name: value for name, value in pipe.config.items() if name in taken and name not in pipe.components}
    if "requires_safety_checker" in options:
        options["requires_safety_checker"] = False
    second = type(pipe)(**pipe.components | own, **options)
    second.set_progress_bar_config(disable=True)
    return second


def _first_step_only(pipe: Any, index: int, t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = True  # diffusers' own way to skip the steps that are left
    return state


def _nearest(images: Tensor, references: References) -> list[Nearest]:
    rows = {name: row for row, name in enumerate(references.names)}
    nearest = []
    for match in with_mirrored(images, lambda pictures, _: match_pixels(pictures, references)):
        row = rows[match.nearest]
        nearest.append(Nearest(match, references[[row]].images[0], references.captions[row]))
    return nearest
