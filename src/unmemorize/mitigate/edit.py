"""Edits: channels and weights of a denoiser set to zero. They apply, save, load, combine and can be taken back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.files import require_file
from unmemorize.core.hooks import replaced
from unmemorize.core.methods import Acts, Localizer, Mitigation, Subject, method, parse
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.results import Localization, PromptUnits, union
from unmemorize.core.run import Progress, atomic, digest, quiet

_KINDS = ("channels/", "weights/")
STRATA = 20  # ranges of norms that a random control is matched in
SHARED = 0.1  # of a random control may be the edit's own units, where a module leaves too few others


class Origin(BaseModel):
    """Where an edit came from; prompts are kept as hashes, since they may be private."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    parameters: dict[str, bool | int | float | str]
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]


class EditRecord(BaseModel):
    """The JSON beside an edit: the model it is for, where it came from, shapes of its masks, hash of the other file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    fingerprint: str
    origins: tuple[Origin, ...]
    shapes: dict[str, tuple[int, ...]]
    sha256: str


@dataclass(frozen=True)
class Edit(Mitigation):
    """What is set to zero in the denoiser of one model, by module name.

    A mask of shape (out,) zeroes output channels, with their bias; one of shape (out, in) zeroes entries of the weight.
    `fingerprint` names the model.
    """

    acts: ClassVar[Acts] = "weights"

    channels: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    fingerprint: str
    origins: tuple[Origin, ...] = ()

    @classmethod
    def of(cls, localization: Localization, fingerprint: str, *, prompt: PromptUnits | None = None) -> Edit:
        """The edit that sets localized units of the model of that fingerprint to zero: all of them, or one prompt's."""
        masks = union([(prompt or localization).masks])
        texts = (prompt.prompt,) if prompt else localization.prompts
        hashes = tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts)
        origin = Origin(
            method=localization.method,
            parameters=dict(localization.parameters),
            seeds=localization.seeds,
            prompts=hashes,
        )
        if localization.units == "channels":
            return cls(masks, {}, fingerprint, (origin,))
        return cls({}, masks, fingerprint, (origin,))

    @property
    def selected(self) -> int:
        """How many channels and weights it zeroes."""
        return sum(int(mask.sum()) for mask in (*self.channels.values(), *self.weights.values()))

    def __or__(self, other: Edit) -> Edit:
        """Both edits at once.

        Raises:
            UserError: They are for different models.
        """
        if self.fingerprint != other.fingerprint:
            raise UserError("these edits are for different models: combine edits of one model")
        channels, weights = union([self.channels, other.channels]), union([self.weights, other.weights])
        return Edit(channels, weights, self.fingerprint, self.origins + other.origins)

    @contextmanager
    def applied(self, subject: Subject) -> Iterator[Subject]:
        """The subject with the edit, for the length of a block; afterwards its weights are the old ones bit for bit.

        Raises:
            UserError: The model has no such modules, or of other shapes.
        """
        denoiser = subject.model.denoiser
        with replaced(denoiser, self._edited(denoiser)):
            yield subject

    def require(self, model: DiffusionModel) -> None:
        """Refuse another model than the edit's own.

        Raises:
            UserError: It is another one.
        """
        if model.fingerprint != self.fingerprint:
            raise UserError("the edit was made for another model, or for this one in another precision: name its own")

    def apply(self, model: DiffusionModel, *, force: bool = False) -> None:
        """Change the weights of a model for good.

        Raises:
            UserError: The model is another one and `force` is not set, or it lacks the modules.
        """
        if not force:
            self.require(model)
        edited, parameters = self._edited(model.denoiser), dict(model.denoiser.named_parameters())
        with torch.no_grad():
            for name, value in edited.items():
                parameters[name].copy_(value)

    def save(self, path: Path) -> None:
        """Write the masks as safetensors to `path`, and what they are as JSON beside it.

        Raises:
            UserError: The name does not end in .safetensors, or is a folder's.
        """
        check_name(path)
        places, shapes = {}, {}
        for name, mask in sorted(self._named().items()):
            # As places in the flattened mask, which take a hundredth of the room where a hundredth is set.
            places[name] = mask.flatten().nonzero()[:, 0].int().cpu()
            shapes[name] = tuple(mask.shape)
        data = save(places)
        hashed = hashlib.sha256(data).hexdigest()
        record = EditRecord(fingerprint=self.fingerprint, origins=self.origins, shapes=shapes, sha256=hashed)
        with atomic(path) as weights, atomic(path.with_suffix(".json")) as text:
            weights.write_bytes(data)
            text.write_text(record.model_dump_json(indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> Edit:
        """Read what `save` wrote.

        Raises:
            UserError: A file is missing, damaged or not an edit's, or the two do not belong together.
        """
        path = Path(path)
        beside = path.with_suffix(".json")
        for file in (path, beside):
            require_file(file, "an edit is a .safetensors file with a .json file beside it")
        try:
            record, data = EditRecord.model_validate_json(beside.read_bytes()), path.read_bytes()
        except ValidationError as error:
            raise UserError(f"{beside}: not an edit's record: copy both files of the edit again") from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise UserError(f"{path}: damaged, or {beside.name} is another edit's: copy both files of the edit again")
        try:
            masks = _masks(load(data), record.shapes)
        except (SafetensorError, ValueError, KeyError, RuntimeError, MemoryError) as error:
            raise UserError(f"{path}: not an edit: name a file that `unmemorize locate` wrote") from error
        channels = {name.removeprefix("channels/"): m for name, m in masks.items() if name.startswith("channels/")}
        weights = {name.removeprefix("weights/"): m for name, m in masks.items() if name.startswith("weights/")}
        return cls(channels, weights, record.fingerprint, record.origins)

    def _named(self) -> dict[str, Tensor]:
        """The masks that set anything to zero, each under its kind and its module's name."""
        named = {}
        for kind, masks in zip(_KINDS, (self.channels, self.weights), strict=True):
            for name, mask in masks.items():
                if mask.any():
                    named[f"{kind}{name}"] = mask
        return named

    def _edited(self, denoiser: nn.Module) -> dict[str, Tensor]:
        """New values of the parameters that the edit changes."""
        parameters = dict(denoiser.named_parameters())
        edited: dict[str, Tensor] = {}
        for masks, ends in ((self.channels, (".weight", ".bias")), (self.weights, (".weight",))):
            for name, mask in masks.items():
                _weight(parameters, name, mask)
                for key in (name + end for end in ends):
                    if key not in parameters:  # not every layer has a bias
                        continue
                    value = edited.get(key, parameters[key].detach())
                    if value.is_meta or value.dtype.itemsize == 1:
                        raise NotApplicable(f"{name} has quantized or offloaded weights: load it in half precision")
                    cover = mask.to(value.device).reshape(*mask.shape, *[1] * (value.ndim - mask.ndim))
                    edited[key] = value.masked_fill(cover, 0)
        return edited


@method("edit", paper="what `unmemorize locate` found, set to zero", cost="none")
@dataclass(frozen=True)
class EditFile(Mitigation):
    """An edit that `unmemorize locate` wrote.

    Attributes:
        path: The .safetensors file, with its .json file beside it.
    """

    acts: ClassVar[Acts] = "weights"

    path: str = "edit.safetensors"

    def fitted(
        self,
        subject: Subject,
        *,
        prompts: Condition | None = None,
        ordinary: Condition | None = None,
        pictures: Tensor | None = None,
        seeds: Sequence[int] = (0,),
        progress: Progress = quiet,
    ) -> Edit:
        """The edit in the file.

        Raises:
            UserError: The file cannot be used, or is another model's.
        """
        edit = Edit.load(self.path)
        edit.require(subject.model)
        return edit

    def applied(self, subject: Subject) -> AbstractContextManager[Subject]:
        """The subject with the edit, for the length of a block."""
        return self.fitted(subject).applied(subject)


@method("located", paper="any localizer's, set to zero", cost="the localizer's", needs=("ordinary",))
@dataclass(frozen=True)
class Located(Mitigation):
    """What a localizer finds for the prompts that give copies, set to zero. A localizer's name stands for it, too.

    Attributes:
        localizer: The localizer with its settings.
    """

    acts: ClassVar[Acts] = "weights"

    localizer: str = "wanda"

    def fitted(
        self,
        subject: Subject,
        *,
        prompts: Condition | None = None,
        ordinary: Condition | None = None,
        pictures: Tensor | None = None,
        seeds: Sequence[int] = (0,),
        progress: Progress = quiet,
    ) -> Edit:
        """The edit that removes what is found.

        Raises:
            UserError: There are no prompts to look for, or the localizer cannot be used.
        """
        if prompts is None:
            raise UserError(f"{self.localizer}: needs prompts that give copies")
        localizer: Localizer = parse("localizer", self.localizer)
        localization = localizer.find(subject, prompts, ordinary=ordinary, progress=progress)
        return Edit.of(localization, subject.model.fingerprint)

    def applied(self, subject: Subject) -> AbstractContextManager[Subject]:
        """Nothing is found before it is fitted.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.localizer}: has to look for the memory of prompts first")


def random_like(edit: Edit, denoiser: nn.Module, seed: int) -> Edit | None:
    """A control: as many channels and weights of every module, of like norms, drawn from those the edit leaves alone.

    The norms of what a module's mask sets to zero (|w| of a weight, ‖w‖ of a channel's row) are cut at their quantiles
    into `STRATA` ranges, and as many units are drawn in each range as the edit takes there. What a range lacks is drawn
    in the next lower ones, then in the next higher ones. None where more than `SHARED` of the control would have to be
    the edit's own units: it would be the same edit under another name.

    Raises:
        UserError: The denoiser has no such modules, or of other shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    channels: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    shared = 0
    for masks, controls in ((edit.channels, channels), (edit.weights, weights)):
        for name, mask in sorted(masks.items()):
            taken, norms = mask.cpu().flatten(), _norms(denoiser, name, mask).flatten()
            control = _draw(taken, norms, generator)
            shared += int((control & taken).sum())
            controls[name] = control.reshape(mask.shape)
    if shared > SHARED * edit.selected:
        return None
    like = digest(origin.model_dump_json().encode() for origin in edit.origins)
    origin = Origin(method="random", parameters={"like": like}, seeds=(seed,), prompts=())
    return Edit(channels, weights, edit.fingerprint, (origin,))


def removed_norm(edit: Edit, denoiser: nn.Module) -> float:
    """√Σ w² over the weights that an edit sets to zero, biases left out.

    Raises:
        UserError: The denoiser has no such modules, or of other shapes.
    """
    total = 0.0
    for masks in (edit.channels, edit.weights):
        for name, mask in masks.items():
            total += float(_norms(denoiser, name, mask)[mask.cpu()].double().square().sum())
    return math.sqrt(total)


def _norms(denoiser: nn.Module, name: str, mask: Tensor) -> Tensor:
    """|w| of every weight, or ‖w‖ of every output channel, in the shape of the mask."""
    weight = _weight(dict(denoiser.named_parameters()), name, mask)
    rows = weight.detach().float().cpu().reshape(*mask.shape, -1)
    return rows.square().sum(dim=-1).sqrt()


def _weight(parameters: Mapping[str, Tensor], name: str, mask: Tensor) -> Tensor:
    """The weight that a mask is for.

    Raises:
        UserError: The model has no such layer, or it has another shape.
    """
    weight = parameters.get(f"{name}.weight")
    if weight is None or weight.shape[: mask.ndim] != mask.shape:
        raise UserError(f"the edit does not fit this model, which has no such layer {name} of its shape")
    return weight


def _draw(taken: Tensor, norms: Tensor, generator: torch.Generator) -> Tensor:
    """As many units as are taken, of like norms: the others first, and taken ones where those are too few."""
    control = torch.zeros_like(taken)
    if not taken.any():
        return control
    ordered = norms[taken].sort().values
    edges = ordered[torch.arange(STRATA + 1) * (len(ordered) - 1) // STRATA]
    stratum = torch.bucketize(norms, edges, right=True)

    def choose(candidates: Tensor, count: int) -> int:
        places = candidates.nonzero()[:, 0]
        chosen = places[torch.randperm(len(places), generator=generator)[:count]]
        control[chosen] = True
        return count - len(chosen)

    missing = 0
    for k in range(STRATA + 1, 0, -1):
        here = stratum == k
        missing = choose(here & ~taken, int((here & taken).sum()) + missing)
    for k in (*range(1, STRATA + 2), 0):  # 0: smaller than all that are taken
        if missing:
            missing = choose((stratum == k) & ~taken & ~control, missing)
    if missing:
        choose(taken, missing)
    return control


def check_name(path: Path) -> None:
    """Refuse a name that no edit can be saved under.

    Raises:
        UserError: It does not end in .safetensors, or is a folder's.
    """
    if path.suffix != ".safetensors" or path.is_dir():
        raise UserError(f"{path}: not a name for an edit: end it in .safetensors")


def _masks(places: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    if places.keys() != shapes.keys():
        raise ValueError("other modules than the record's")
    masks = {}
    for name, index in places.items():
        shape = shapes[name]
        size = torch.Size(shape).numel()
        expected = {"channels/": 1, "weights/": 2}[name.split("/", 1)[0] + "/"]
        if len(shape) != expected or index.ndim != 1 or index.dtype != torch.int32 or not len(index):
            raise ValueError("no mask")
        if size > 2**31 or int(index.min()) < 0 or int(index.max()) >= size:
            raise ValueError("places outside of the mask")
        mask = np.zeros(size, np.bool_)  # memory that nobody writes to is not taken: shapes may be false
        mask[index.numpy()] = True
        masks[name] = torch.from_numpy(mask).reshape(shape)
    return masks
