"""Find what a model memorized in its weights, keep it as an edit, and apply edits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from unmemorize.core.errors import UserError
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Localization
from unmemorize.core.run import Progress, digest, new_folder, require_new
from unmemorize.core.specs import LocateSpec
from unmemorize.jobs.inputs import load_as_asked, ordinary_of, prompts_of
from unmemorize.localize.nemo import PAPER_THRESHOLD, NemoSettings, nemo
from unmemorize.localize.reference import SEEDS, Reference, load_reference, reference, save_reference
from unmemorize.localize.wanda import wanda
from unmemorize.mitigate.weights import Edit, check_name
from unmemorize.models.load import EMBEDDED, load

PAPER_MODEL = "CompVis/stable-diffusion-v1-4"  # whose threshold the paper gives


def locate(
    spec: LocateSpec, out: Path, progress: Progress = lambda stage, done, total: None
) -> tuple[Localization, Edit]:
    """Locate what the prompts' memories are held by, and save the edit that removes it to `out`.

    Raises:
        UserError: The model, the prompts or the name of the edit cannot be used.
        NotApplicable: The model lacks the layers that the method looks at.
    """
    check_name(out)
    prompts = memorized_prompts(spec)
    ordinary = ordinary_prompts(spec) if spec.method == "nemo" else []
    model = load_as_asked(spec)
    hashed = model.fingerprint
    if spec.method == "nemo":
        usual = cached_reference(model, ordinary, hashed, Path(spec.cache) if spec.cache else cache_folder(), progress)
        threshold = PAPER_THRESHOLD if spec.threshold is None and spec.model == PAPER_MODEL else spec.threshold
        settings = NemoSettings(
            layers=spec.layers, threshold=threshold, minimum=spec.min_theta, refine=spec.refine, rule=spec.rule
        )
        found = nemo(model, prompts, usual, settings, progress, ordinary=ordinary)
    else:
        found = wanda(model, prompts, sparsity=spec.sparsity, per_prompt=spec.per_prompt, progress=progress)
    edit = Edit.of(found, hashed)
    edit.save(out)
    return found, edit


def memorized_prompts(spec: LocateSpec) -> list[str]:
    """The prompts in the file, or the embedded model's memorable ones."""
    chosen = prompts_of(spec.model, spec.prompts, spec.column)
    return [p.text for p in chosen if spec.prompts or p.memorable]


def ordinary_prompts(spec: LocateSpec) -> list[str]:
    """The prompts in the file, or the embedded model's negatives.

    Raises:
        UserError: No file is given and the model has none.
    """
    if not spec.ordinary and spec.model not in EMBEDDED:
        raise UserError(
            f"{spec.model}: NeMo compares with ordinary prompts: name a file of captions that are not memorized with "
            "--ordinary, the more the better"
        )
    return ordinary_of(spec.model, spec.ordinary, spec.column)


def cache_folder() -> Path:
    """Where statistics are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unmemorize"


def cached_reference(
    model: DiffusionModel, prompts: Sequence[str], hashed: str, folder: Path, progress: Progress
) -> Reference:
    """Statistics of ordinary prompts, measured once per model and set of prompts."""
    key = digest(text.encode() for text in (hashed, repr(SEEDS), *prompts))
    path = folder / f"nemo-{key[:32]}.safetensors"
    found = load_reference(path, key)
    if found is None:
        found = reference(model, prompts, progress=progress)
        save_reference(path, found, key)
    return found


def apply_edit(model: str, edit: Path, out: Path, *, force: bool = False) -> Edit:
    """Write the model with the edit to a new folder, which `from_pretrained` loads.

    Raises:
        UserError: The model or the edit cannot be used, they do not belong together, or the folder is not new.
    """
    require_new(out)
    change = Edit.load(edit)
    loaded = load(model)
    change.apply(loaded, force=force)
    with new_folder(out) as temporary:
        loaded.save(temporary)
    return change
