"""The kinds of method, and the registry of all methods by kind and name.

A method is a frozen dataclass of its settings, in one file, registered by `method`. Commands take it as one string,
`wanda:sparsity=0.1,per_prompt=true`, which `parse` reads. This package's methods and those of other packages are found
in the same way: through one group of entry points a kind, `GROUPS`.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.recording import Recorder, Recording
from unmemorize.core.results import Explanation, Found, Localization, Pairs, Regions, Scores, Surrogates, Trained
from unmemorize.core.run import Progress, quiet
from unmemorize.core.sample import Sampler

Kind = Literal["detector", "picture-test", "explainer", "localizer", "unlearner", "mitigation", "attack"]
Acts = Literal["weights", "condition", "noise", "guidance", "attention", "state"]
SAMPLING: frozenset[Acts] = frozenset(get_args(Acts)) - {"weights"}  # what acts while a picture is sampled
LARGEST = 1e6  # of a setting whose type has no bounds of its own
NEEDS = frozenset({"gradients", "attention", "unconditional", "pictures", "ordinary", "tokens", "base"})

GROUPS: dict[Kind, str] = {
    "detector": "unmemorize.detectors",
    "picture-test": "unmemorize.picture_tests",
    "explainer": "unmemorize.explainers",
    "localizer": "unmemorize.localizers",
    "unlearner": "unmemorize.unlearners",
    "mitigation": "unmemorize.mitigations",
    "attack": "unmemorize.attacks",
}


@dataclass(frozen=True)
class Subject:
    """What is studied: a model, the way pictures are drawn from it, and the model it was tuned from, where known."""

    model: DiffusionModel
    sampler: Sampler = Sampler()
    base: DiffusionModel | None = None

    @property
    def steps(self) -> int:
        """The number of sampling steps."""
        return self.sampler.steps_of(self.model)

    @property
    def guidance(self) -> float:
        """The guidance scale."""
        return self.sampler.guidance_of(self.model)


class Method(ABC):
    """A method of any kind: its settings are the fields of a frozen dataclass.

    Attributes:
        kind: What it is for.
        name: What it is called on the command line.
        paper: Where it comes from.
        needs: What it asks of a model or of its user beyond prompts, of `NEEDS`.
        cost: What it costs, in words.
    """

    kind: ClassVar[Kind]
    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    cost: ClassVar[str]


class Detector(Method):
    """Says how memorized a prompt looks: higher is more."""

    kind = "detector"

    @abstractmethod
    def score_recording(self, recording: Recording) -> Scores:
        """Score every prompt at every seed of a recording, which evaluates once what several detectors read.

        Raises:
            NotApplicable: The model lacks what the detector reads.
        """

    def fitted(self, ordinary: Scores) -> Detector:
        """The detector with what it takes from ordinary prompts: from the scores that it gave them as it is."""
        return self

    def score(self, subject: Subject, cond: Condition, *, seeds: Sequence[int]) -> Scores:
        """Score every prompt at every seed.

        Raises:
            NotApplicable: The model lacks what the detector reads.
        """
        return self.ready(subject, seeds=seeds)(cond)

    def ready(self, subject: Subject, *, seeds: Sequence[int]) -> Callable[[Condition], Scores]:
        """`score` for many batches of prompts: what all of them share is computed once."""
        recorder = Recorder(subject.model, subject.sampler, tuple(seeds))
        return lambda cond: score_each([self], recorder, cond)[0]


def score_each(detectors: Sequence[Detector], recorder: Recorder, cond: Condition) -> list[Scores]:
    """The scores of several detectors from one recording.

    What an evaluation costs is counted where it is first read, so that costs add up; not counted is what all prompts
    share (`Recorder.shared`).
    """
    parts: list[list[Scores]] = [[] for _ in detectors]
    for recording in recorder.recordings(cond):
        for detector, own in zip(detectors, parts, strict=True):
            shared = recorder.shared
            with recorder.model.counted() as cost:
                scores = detector.score_recording(recording)
            own.append(replace(scores, evaluations=cost.forward - (recorder.shared - shared)))
    return [_joined(own) for own in parts]


def _joined(parts: Sequence[Scores]) -> Scores:
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Scores(torch.cat([part.by_seed for part in parts]), sum(part.evaluations for part in parts), columns)


class PictureTest(Method):
    """Says how likely it is that a picture was trained on: higher is more."""

    kind = "picture-test"

    @abstractmethod
    def score(self, subject: Subject, pictures: Pairs, *, seeds: Sequence[int]) -> Scores:
        """Score every picture at every seed, with its caption.

        Raises:
            NotApplicable: The model lacks what the test reads.
        """


class Explainer(Method):
    """Says which words of a prompt carry its memory, or where in its pictures it shows.

    Attributes:
        says: Which of the two.
    """

    kind = "explainer"
    says: ClassVar[Literal["words", "regions"]] = "words"

    @abstractmethod
    def explain(self, subject: Subject, prompt: str, *, seeds: Sequence[int]) -> Explanation | Regions:
        """The value of every word, or of every place in a picture a seed: higher carries more.

        Raises:
            NotApplicable: The model lacks what the explainer reads.
        """


class Localizer(Method):
    """Says where in the weights the memory of prompts is held."""

    kind = "localizer"

    @abstractmethod
    def find(
        self, subject: Subject, cond: Condition, *, ordinary: Condition | None = None, progress: Progress = quiet
    ) -> Localization:
        """The units of the denoiser that hold what these prompts bring back, beside ordinary ones where it needs them.

        Raises:
            NotApplicable: The model lacks the layers that it looks at.
            UserError: A setting is out of range, or ordinary prompts are needed and missing.
        """


@dataclass(frozen=True)
class Training:
    """What an unlearner is given beside pictures.

    Attributes:
        folder: Where checkpoints go; a run that is there is continued.
        surrogates: Makes other pictures for the prompts of those to forget, for methods that ask for some.
        check: The share of attacks that succeed on the model as it is after so many updates; None: no checks.
        progress: Told of updates, and of the last check's rate in percent.
    """

    folder: Path
    surrogates: Callable[[], Surrogates]
    check: Callable[[int], float] | None = None
    progress: Progress = quiet


class Unlearner(Method):
    """Trains memorized pictures out of a model."""

    kind = "unlearner"

    @abstractmethod
    def train(self, subject: Subject, forget: Pairs, keep: Pairs, training: Training) -> Trained:
        """Train the subject's denoiser in place, until pictures to forget are gone and ordinary ones are as they were.

        Raises:
            UserError: The loss is not finite, the disk is full, or the folder holds another run.
        """


class Mitigation(Method):
    """Changes a model, or how pictures are drawn from it, for a while.

    Attributes:
        acts: On what: it says which attacks have met it.
    """

    kind = "mitigation"
    acts: ClassVar[Acts]

    def fitted(
        self,
        subject: Subject,
        *,
        prompts: Condition | None = None,
        ordinary: Condition | None = None,
        pictures: Tensor | None = None,
        seeds: Sequence[int] = (0,),
        progress: Progress = quiet,
    ) -> Mitigation:
        """The mitigation with what it measures beforehand: on prompts that give copies, and on ordinary ones.

        `pictures` are known training pictures as latents, (n, c, h, w), for one that needs pictures.
        """
        return self

    @abstractmethod
    def applied(self, subject: Subject) -> AbstractContextManager[Subject]:
        """The mitigated subject for the length of a block; afterwards everything is as it was.

        Raises:
            UserError: It is for another model, or has not been fitted.
        """


class Attack(Method):
    """Searches for conditions that bring pictures back.

    Attributes:
        meets: What a mitigation may act on so that the attack meets it: one that searches the model alone meets only
            what acts on weights.
        updates: Updates of a search.
    """

    kind = "attack"
    meets: ClassVar[frozenset[Acts]] = frozenset({"weights"})
    updates: int

    def prepared(self, prompts: Condition, ordinary: Condition) -> Attack:
        """The attack with prompts to start from beside the pictures' own: of other pictures, and ordinary ones."""
        return self

    @abstractmethod
    def attack(
        self,
        subject: Subject,
        latents: Tensor,
        start: Condition,
        *,
        seeds: Sequence[int],
        keep: Collection[int] = (),
    ) -> Found:
        """Search for every picture.

        Args:
            subject: The model to attack, under whatever is applied to it.
            latents: The pictures' latents, (n, c, h, w).
            start: What to start from, one row a picture.
            seeds: One a picture.
            keep: Numbers of updates after which to keep the conditions too, 0 for the start; the last are always kept.

        Raises:
            NotApplicable: The model lacks what the attack needs.
        """


M = TypeVar("M", bound=Method)
_METHODS: dict[Kind, dict[str, type[Method]]] = {kind: {} for kind in GROUPS}
_SIMPLE = (bool, int, float, str)


def method(name: str, *, paper: str, cost: str, needs: Collection[str] = ()) -> Callable[[type[M]], type[M]]:
    """Register a method under its name, with where it comes from and what it needs.

    Raises:
        ValueError: Another method of its kind has the name, or a name cannot be written or is not known.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"expected lower-case words joined by hyphens, got {name!r}")
    if not NEEDS.issuperset(needs):
        raise ValueError(f"expected needs of {sorted(NEEDS)}, got {sorted(needs)}")

    def register(cls: type[M]) -> type[M]:
        known = _METHODS[cls.kind]
        if name in known:
            raise ValueError(f"expected a new name, got {name!r}, which is a {cls.kind} already")
        cls.name, cls.paper, cls.cost, cls.needs = name, paper, cost, frozenset(needs)
        known[name] = cls
        return cls

    return register


def import_beside(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, which registers its methods."""
    for module in iter_modules(path):
        import_module(f"{package}.{module.name}")


@cache
def _load(kind: Kind) -> None:
    for entry in entry_points(group=GROUPS[kind]):
        entry.load()


def methods(kind: Kind) -> dict[str, type[Method]]:
    """The methods of a kind by name, this package's and those of others."""
    _load(kind)
    return dict(sorted(_METHODS[kind].items()))


def parse(kind: Kind, text: str) -> Any:
    """A method from `NAME` or `NAME:key=value,key=value`.

    Raises:
        UserError: There is no such method or setting, or a value is out of its type.
    """
    name, _, settings_text = text.partition(":")
    known = methods(kind)
    if name not in known:
        raise UserError(f"{name!r}: no such {kind}: choose one of {', '.join(known)}{_meant(name, known)}")
    cls = known[name]
    given: dict[str, Any] = {}
    types = _types(cls)
    for part in filter(None, settings_text.split(",")):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in types:
            choice = f"it has {', '.join(types)}" if types else "it has none"
            raise UserError(f"{name}: no setting {key!r}: {choice}{_meant(key, types)}")
        given[key] = _value(f"{name}:{key}", value.strip(), types[key])
    try:
        return cls(**given)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def _value(where: str, text: str, hint: Any) -> Any:
    try:
        value = TypeAdapter(hint).validate_strings(text)
    except ValidationError as error:
        raise UserError(f"{where}={text!r}: {error.errors()[0]['msg'].lower()}") from error
    if isinstance(value, float) and not abs(value) <= LARGEST:
        raise UserError(f"{where}={text!r}: name a number of at most {LARGEST:g}")
    return value


def _meant(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, 1)
    return f"; {close[0]} is meant?" if close else ""


def settings(method: type[Method] | Method) -> dict[str, Any]:
    """The settings that a string can name, with the values they have, those of a class its defaults."""
    values: dict[str, Any] = {}
    cls = method if isinstance(method, type) else type(method)
    for name in _types(cls):
        values[name] = _default(cls, name) if isinstance(method, type) else getattr(method, name)
    return values


def spelled(method: Method) -> str:
    """The string that `parse` reads back as this method: its name, and the settings that are not the default."""
    defaults = settings(type(method))
    parts = []
    for name, value in settings(method).items():
        if value != defaults[name]:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            parts.append(f"{name}={text}")
    return f"{method.name}:{','.join(parts)}" if parts else method.name


def is_plain(method: Method) -> bool:
    """Whether a string can name all its settings, so that `spelled` loses none."""
    return _types(type(method)).keys() == {field.name for field in _fields(type(method))}


def describe(cls: type[Method]) -> dict[str, Any]:
    """What there is to know about a method, for people and programs."""
    types, defaults, texts = _types(cls), settings(cls), _setting_texts(cls)
    facts: dict[str, Any] = {
        "name": cls.name,
        "kind": cls.kind,
        "summary": (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " "),
        "paper": cls.paper,
        "needs": sorted(cls.needs),
        "cost": cls.cost,
        "settings": {
            name: {"type": _written(hint), "default": defaults[name], "text": texts.get(name, "")}
            for name, hint in types.items()
        },
    }
    if issubclass(cls, Mitigation):
        facts["acts"] = cls.acts
    return facts


def _fields(cls: type[Method]) -> Sequence[Field[Any]]:
    if not is_dataclass(cls):
        raise TypeError(f"expected a dataclass of settings, got {cls.__name__}")
    return fields(cls)


@cache
def _types(cls: type[Method]) -> Mapping[str, Any]:
    """The types of the settings that can be written as text."""
    hints = get_type_hints(cls, include_extras=True)  # with the bounds of numbers
    return {f.name: hints[f.name] for f in _fields(cls) if f.init and _is_simple(hints[f.name])}


def _is_simple(hint: Any) -> bool:
    """Numbers, texts and choices, or one of these and None."""
    if get_origin(hint) is Annotated:
        return _is_simple(hint.__origin__)
    if hint in _SIMPLE or hint is type(None):
        return True
    parts = getattr(hint, "__args__", ())
    if getattr(hint, "__origin__", None) is Literal:
        return True
    return bool(parts) and not hasattr(hint, "__origin__") and all(_is_simple(part) for part in parts)


def _default(cls: type[Method], name: str) -> Any:
    setting = next(field for field in _fields(cls) if field.name == name)
    return None if setting.default is MISSING else setting.default


def _written(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _written(hint.__origin__)
    if isinstance(hint, type):
        return hint.__name__
    if getattr(hint, "__origin__", None) is Literal:
        return " | ".join(map(str, hint.__args__))
    return " | ".join(_written(part) for part in hint.__args__ if part is not type(None))


def _setting_texts(cls: type[Method]) -> dict[str, str]:
    """What the docstrings of a class and of those it extends say of each attribute."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")[2]
        section = re.split(r"\n\n|\n\S", section)[0]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n      .*)*)", section, re.MULTILINE):
            texts[name] = re.sub(r"\s+", " ", text)
    return texts
