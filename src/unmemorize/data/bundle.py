"""What a model is studied with: prompts and pictures from a user's files, or the model's own, each read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from unmemorize.core.errors import UserError
from unmemorize.core.files import real_path
from unmemorize.data.ordinary import ordinary_prompts
from unmemorize.data.source import Half, Prompt, read_prompts, read_references
from unmemorize.metrics.similarity import References

FILES = ("prompts", "ordinary", "references", "targets", "controls", "held_out")  # options that name them
Size = tuple[int, int]  # height and width
PLANTED = ("verbatim", "trigger")  # kinds with one picture, which was trained on often or never


@dataclass(frozen=True)
class Own:
    """What a model brings: prompts with their truth, a folder of pictures, and the truth of each by name.

    `half` says what the model is for, choosing settings or reporting results, where it is for one of them alone.
    `controls` is a folder of ordinary training pictures.
    """

    prompts: tuple[Prompt, ...]
    pictures: Path
    known: Mapping[str, Prompt]
    controls: Path
    half: Half | None = None


@dataclass(frozen=True, eq=False)
class Bundle:
    """The prompts and pictures of one command, read when they are first asked for and kept.

    `files` are paths by option, without those that were not named; `own` is what stands in for them, where the model
    brings something.
    """

    model: str
    files: Mapping[str, str]
    column: str = ""
    own: Own | None = None
    _read: dict[tuple[str, Size], References] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, spec: Any, own: Own | None = None) -> Bundle:
        """The bundle that a command's settings name."""
        files = {name: path for name in FILES if (path := getattr(spec, name, ""))}
        return cls(spec.model, files, getattr(spec, "column", ""), own)

    @cached_property
    def prompts(self) -> Sequence[Prompt]:
        """The prompts that are studied.

        Raises:
            UserError: Their file cannot be used, or there is none and the model has no prompts of its own.
        """
        if "prompts" in self.files:
            return read_prompts(Path(self.files["prompts"]), self.column)
        if self.own is None:
            raise UserError(f"{self.model}: which prompts? name a file of captions with --prompts")
        return self.own.prompts

    def half(self, half: Half) -> list[Prompt]:
        """The prompts that settings are chosen on, or those that they are reported on; related ones stay together.

        Raises:
            UserError: The model is for the other purpose.
        """
        if self.own is not None and self.own.half not in (None, half):
            raise UserError(f"{self.model}: for {self.own.half} alone: name another branch for {half}")
        if all(prompt.half for prompt in self.prompts):
            return [prompt for prompt in self.prompts if prompt.half == half]
        clusters = list(dict.fromkeys(prompt.cluster or prompt.id for prompt in self.prompts))
        chosen = set(clusters[::2] if half == "choosing" else clusters[1::2])
        return [prompt for prompt in self.prompts if (prompt.cluster or prompt.id) in chosen]

    @cached_property
    def _ordinary(self) -> list[str] | None:
        if "ordinary" in self.files:
            return [prompt.text for prompt in read_prompts(Path(self.files["ordinary"]), self.column)]
        if self.own is not None:
            return [prompt.text for prompt in self.own.prompts if is_ordinary(prompt)]
        return None

    def ordinary(self, count: int = 150) -> list[str]:
        """Prompts known to be ordinary; `count` plain descriptions, which no training caption equals, where none are.

        Raises:
            UserError: Their file cannot be used.
        """
        return ordinary_prompts(count) if self._ordinary is None else self._ordinary

    def has(self, option: str) -> bool:
        """Whether what an option gives is named, or the model brings its own."""
        return option in self.files or self.own is not None

    def place(self, option: str) -> Path:
        """Where the pictures of an option lie: its file, or the model's own folder."""
        own = Path() if self.own is None else self.own.pictures
        return Path(self.files.get(option, own))

    def source(self, option: str, plain: str = "") -> str:
        """Where what an option gives comes from, for a run's record: its file, the model, or what stands in."""
        return self.files.get(option, plain or self.model)

    def references(self, size: Size) -> References:
        """The training pictures to compare with; of the model's own those that it was trained on.

        Raises:
            UserError: They cannot be read, or there are none.
        """
        return self._pictures("references", size, is_trained, "copies of what? name the folder of training pictures")

    def targets(self, size: Size) -> References:
        """The pictures to extract or to forget; of the model's own those that were planted often, each as it is.

        Raises:
            UserError: They cannot be read, or there are none.
        """
        return self._pictures("targets", size, is_target, "which pictures? name a folder of pictures with captions")

    def controls(self, size: Size) -> References:
        """Pictures that were trained on and are not memorized; of the model's own ordinary ones.

        Raises:
            UserError: They cannot be read, or there are none.
        """
        if "controls" in self.files:
            return self.read(self.files["controls"], size)
        if self.own is None:
            missing = "name a folder of training pictures that are not believed to be with --controls"
            raise UserError(f"{self.model}: which pictures are not memorized? {missing}")
        return self.read(str(self.own.controls), size)

    def held_out(self, size: Size) -> References | None:
        """Pictures that were never trained on, where some are named or the model brings its own.

        Raises:
            UserError: They cannot be read.
        """
        if "held_out" in self.files:
            return self.read(self.files["held_out"], size)
        if self.own is None or not any(is_unseen(known) for known in self.own.known.values()):
            return None
        return self.own_pictures(size, is_unseen)

    def own_pictures(self, size: Size, keep: Callable[[Prompt], bool]) -> References:
        """The model's own pictures of whose truth `keep` says yes.

        Raises:
            UserError: The model has none.
        """
        if self.own is None:
            raise UserError(f"{self.model}: brings no pictures of its own: name yours")
        known = self.own.known
        return self.read(str(self.own.pictures), size).named({name for name in known if keep(known[name])})

    def _pictures(self, option: str, size: Size, keep: Callable[[Prompt], bool], missing: str) -> References:
        """Those that an option names, or some of the model's own."""
        if option in self.files:
            return self.read(self.files[option], size)
        if self.own is None:
            raise UserError(f"{self.model}: {missing} with --{option}")
        return self.own_pictures(size, keep)

    def read(self, source: str, size: Size) -> References:
        """The pictures of a source, read once however many options name it.

        Raises:
            UserError: They cannot be read.
        """
        key = str(real_path(Path(source))), size
        if key not in self._read:
            self._read[key] = read_references(Path(source), size)
        return self._read[key]


def is_trained(known: Prompt) -> bool:
    """Whether a picture was trained on."""
    return known.copies != 0


def is_target(known: Prompt) -> bool:
    """Whether a picture is to be extracted or forgotten: one picture with one caption, often."""
    return known.kind in PLANTED and bool(known.memorable)


def is_unseen(known: Prompt) -> bool:
    """Whether a picture was never trained on, and is one that could have been planted or is of an ordinary prompt."""
    return known.kind in (*PLANTED, "ordinary") and not is_trained(known)


def is_ordinary(known: Prompt) -> bool:
    """Whether nothing was planted under a prompt, and its pictures are no plain ones."""
    return known.kind == "ordinary"
