"""Find what a model memorized in its weights, keep it as an edit, and apply edits."""

from __future__ import annotations

from pathlib import Path

from unmemorize.core.errors import UserError
from unmemorize.core.methods import Localizer, Subject, parse
from unmemorize.core.results import Localization
from unmemorize.core.run import Progress, new_folder, quiet, require_new
from unmemorize.core.specs import ApplySpec, LocateSpec
from unmemorize.mitigate.edit import Edit, check_name
from unmemorize.stages.inputs import Inputs, bundle_of, load_as_asked


def locate(spec: LocateSpec, out: Path, progress: Progress = quiet) -> tuple[Localization, Edit]:
    """Locate what the prompts' memories are held by, and save the edit that removes it to `out`.

    Raises:
        UserError: The model, the prompts, the method or the name of the edit cannot be used.
        NotApplicable: The model lacks the layers that the method looks at.
    """
    check_name(out)
    localizer: Localizer = parse("localizer", spec.method)
    require_ordinary(spec, localizer)
    inputs = Inputs.of(spec)
    model = inputs.model
    prompts, ordinary = prompts_of(inputs, localizer)
    contrast = model.encode(ordinary) if ordinary else None
    localization = localizer.find(Subject(model), model.encode(prompts), ordinary=contrast, progress=progress)
    edit = Edit.of(localization, model.fingerprint)
    edit.save(out)
    return localization, edit


def require_ordinary(spec: LocateSpec, localizer: Localizer) -> None:
    """Refuse a localizer that compares with ordinary prompts where none are known.

    Raises:
        UserError: No file is named and the model has none.
    """
    if "ordinary" in localizer.needs and not bundle_of(spec).has("ordinary"):
        raise UserError(
            f"{spec.model}: {spec.method} compares with ordinary prompts: name a file of captions that are not "
            "memorized with --ordinary, the more the better"
        )


def prompts_of(inputs: Inputs, localizer: Localizer) -> tuple[list[str], list[str]]:
    """The prompts to locate, of the model's own those memorized, and ordinary ones where the localizer needs them."""
    bundle = inputs.bundle
    prompts = [prompt.text for prompt in bundle.prompts if "prompts" in bundle.files or prompt.memorable]
    return prompts, bundle.ordinary() if "ordinary" in localizer.needs else []


def apply_edit(spec: ApplySpec, edit: Path, out: Path, *, force: bool = False) -> Edit:
    """Write the model with the edit to a new folder, which `from_pretrained` loads.

    Raises:
        UserError: The model or the edit cannot be used, they do not belong together, or the folder is not new.
    """
    require_new(out)
    change = Edit.load(edit)
    model = load_as_asked(spec)
    change.apply(model, force=force)
    with new_folder(out) as temporary:
        model.save(temporary)
    return change
