"""A mitigation as a user names it: by its name or a localizer's, by an edit's file or a tuned model's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unmemorize.core.errors import UserError
from unmemorize.core.files import real_path, require_file
from unmemorize.core.hooks import replaced
from unmemorize.core.methods import Mitigation, methods, parse
from unmemorize.core.model import Condition, DiffusionModel
from unmemorize.core.run import Progress, Source, digest, quiet
from unmemorize.data.bundle import Bundle
from unmemorize.mitigate.edit import EditFile, Located
from unmemorize.mitigate.guard import Guard
from unmemorize.mitigate.prompt_reanchoring import PromptReanchoring
from unmemorize.mitigate.tuned import Tuned
from unmemorize.models.load import load
from unmemorize.stages.inputs import Inputs
from unmemorize.study.effects import latents_of

UNKNOWN = (
    "what is ordinary for this model? name a file of prompts like those it serves with --ordinary, 99 or more for 1% "
    "false alarms"
)


def mitigation_of(text: str, model: DiffusionModel) -> Mitigation:
    """The mitigation that a text names; what it has to measure beforehand is not measured yet.

    Raises:
        UserError: There is none of that name, a setting is wrong, or a file or folder cannot be used.
    """
    name = text.partition(":")[0]
    if name in methods("mitigation"):
        mitigation: Mitigation = parse("mitigation", text)
        return mitigation
    if name in methods("localizer"):
        parse("localizer", text)
        return Located(localizer=text)
    require_mitigation(text)
    return tuned_model(text, model) if Path(text).is_dir() else EditFile(path=text)


def fit(
    mitigation: Mitigation,
    inputs: Inputs,
    *,
    prompts: Condition | None = None,
    ordinary: Condition | None = None,
    seeds: Sequence[int] = (0,),
    progress: Progress = quiet,
) -> Mitigation:
    """The mitigation with what it measures beforehand; training pictures are read for one that needs them.

    Raises:
        UserError: What it needs is not there.
    """
    require_ordinary(mitigation, inputs.bundle)
    pictures = None
    if "pictures" in mitigation.needs and inputs.bundle.has("references"):
        pictures = latents_of(inputs.model, inputs.bundle.references(inputs.model.image_size).pixels)
    return mitigation.fitted(
        inputs.subject, prompts=prompts, ordinary=ordinary, pictures=pictures, seeds=seeds, progress=progress
    )


def require_ordinary(mitigation: Mitigation, bundle: Bundle) -> None:
    """Refuse to promise a rate of false alarms where nothing says what is ordinary for the model.

    Plain descriptions are contrast enough for other methods; a rate holds for prompts like those it was measured on.

    Raises:
        UserError: No ordinary prompts are named, and the model has none of its own.
    """
    if promises_a_rate(mitigation) and not bundle.has("ordinary"):
        raise UserError(f"{mitigation.name}: {UNKNOWN}")


def promises_a_rate(mitigation: Mitigation) -> bool:
    """Whether a mitigation acts on no more than a stated share of ordinary prompts, which it has to be shown."""
    return isinstance(mitigation, Guard | PromptReanchoring) and mitigation.threshold is None


def sources_of(mitigations: Mapping[str, Mitigation]) -> dict[str, Source]:
    """What files and folders of mitigations hold, for a run's record, by the names given.

    Raises:
        UserError: A file is missing.
    """
    sources = {}
    for name, mitigation in mitigations.items():
        if isinstance(mitigation, Tuned):
            sources[name] = Source(source=mitigation.folder, sha256=mitigation.fingerprint, count=1)
        if isinstance(mitigation, EditFile):
            path = Path(mitigation.path)
            require_file(path, "name a file that `unmemorize locate` wrote")
            sources[name] = Source(source=mitigation.path, sha256=digest([path.read_bytes()]), count=1)
    return sources


def require_mitigation(text: str) -> None:
    """Refuse a text that is neither a method's name nor an edit's file or a folder.

    Raises:
        UserError: It is none of these.
    """
    known = [*methods("mitigation"), *methods("localizer")]
    path = Path(text)
    if text.partition(":")[0] in known or path.is_dir() or path.suffix == ".safetensors":
        return
    names = ", ".join(known)
    raise UserError(f"{text}: no such mitigation: choose one of {names}, an edit's file, or a tuned model's folder")


def tuned_model(folder: str, model: DiffusionModel) -> Tuned:
    """The weights of a model of which only the denoiser was tuned, on the CPU.

    Raises:
        UserError: It cannot be loaded, or differs in more.
    """
    tuned = load(folder, dtype=next(model.denoiser.parameters()).dtype, device="cpu")
    values = {name: weight.detach() for name, weight in tuned.denoiser.named_parameters()}
    own = {name: weight.shape for name, weight in model.denoiser.named_parameters()}
    if own != {name: weight.shape for name, weight in values.items()}:
        raise UserError(f"{folder}: its denoiser has other layers than that of {model.name}: name a tuned copy of it")
    fingerprint = tuned.fingerprint
    with replaced(model.denoiser, values):
        if model.fingerprint != fingerprint:
            raise UserError(
                f"{folder}: its text encoder, VAE or noise schedule is not that of {model.name}: name a model of which "
                "only the denoiser was tuned"
            )
    return Tuned(folder, fingerprint, values)


def named_apart(texts: Sequence[str]) -> dict[str, str]:
    """The mitigations by a short name each: the method's, or the folder's or file's own.

    Raises:
        UserError: One is not known, or two have one name.
    """
    methods_by_name = {*methods("mitigation"), *methods("localizer")}
    named: dict[str, str] = {}
    for text in texts:
        require_mitigation(text)
        method = text.partition(":")[0]
        name = real_path(Path(text)).stem.encode("utf-8", "backslashreplace").decode()
        taken = name in named or name in methods_by_name
        if method in methods_by_name:
            name, taken = method, method in named
        if taken:
            raise UserError(f"--mitigation {text}: another one is called {name}, too: name one of them, or rename it")
        named[name] = text
    return named
