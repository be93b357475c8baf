"""What is wrong in what a command is given, as far as that shows before torch is imported: so it is told at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from unmemorize.cli.terminal import errors, say
from unmemorize.core.crew import WHOLE, Part, part_of
from unmemorize.core.files import require_file
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.run import check_settings
from unmemorize.core.shards import BROKEN
from unmemorize.core.specs import Loaded, OfModel, Prompted, recorded, require_prompts
from unmemorize.models.source import embedding_file, examine, lora_file

PROMPTS = ("prompts", "ordinary")
PICTURES = ("references", "targets", "controls", "held_out")
FILES = {
    "sscd": "name an SSCD TorchScript (.pt) or ONNX (.onnx) file",
    "labels": "name a .csv, .tsv or .jsonl file of prompts with a column named memorized",
}


def check(spec: OfModel, *outputs: Output) -> None:
    """Refuse what cannot be read or written, and a run directory of other settings; then say what is loading.

    The work itself checks again, and more: what is inside files, and what depends on the model.

    Args:
        spec: The settings.
        outputs: Where results go.

    Raises:
        UserError: An input is not there or is of another kind, an output cannot be written, or a run directory holds a
            run with other settings.
    """
    given = {name: getattr(spec, name, "") for name in (*PROMPTS, *PICTURES, *FILES)}
    check_outputs(outputs, [spec.model, *given.values(), *_mitigations(spec)])
    if isinstance(spec, Loaded):
        examine(spec.model, variant=spec.variant or None, revision=spec.revision or None)
        for file in spec.lora:
            lora_file(file)
        for file in spec.embedding:
            embedding_file(file)
    if isinstance(spec, Prompted):
        require_prompts(spec.model, spec.prompts)
    for name, remedy in FILES.items():
        if given[name]:
            require_file(Path(given[name]), remedy)
    _check_mitigations(spec)
    _check_captions(given, getattr(spec, "column", ""))
    for output in outputs:
        if output.kind == "run":
            check_settings(output.path, recorded(spec))
            _say_kept(output.path)
    say(f"loading {spec.model} …", to=errors)


def part_named(text: str) -> Part:
    """The part of the work that `--part` names; all of it where it names none.

    Raises:
        UserError: It is no part.
    """
    return part_of(text) if text else WHOLE


def _mitigations(spec: OfModel) -> tuple[str, ...]:
    named = getattr(spec, "mitigation", ())
    return (named,) if isinstance(named, str) else named


def _check_mitigations(spec: OfModel) -> None:
    """The files of edits; names of methods are read once torch is there."""
    for text in _mitigations(spec):
        if text.endswith(".safetensors") and ":" not in text:
            require_file(Path(text), "name an edit: NAME.safetensors")


def _check_captions(given: dict[str, Any], column: str) -> None:
    """The first rows of files of prompts, and the kinds of folders of pictures."""
    named = [name for name in (*PROMPTS, *PICTURES) if given[name]]
    if not named:
        return
    from unmemorize.data.captions import pieces, prompt_pieces  # which takes half a second: nothing else here does

    for name in named:
        if name in PROMPTS:
            prompt_pieces(Path(given[name]), column)
        else:
            pieces(Path(given[name]))


def _say_kept(run: Path) -> None:
    """Say what a run directory holds already, by the number of rows of each table and part."""
    if not (run / "run.json").exists():
        return
    import pyarrow.parquet as pq

    counts: dict[str, int] = {}
    for path in sorted([*run.glob("scores/*.parquet"), *run.glob("shards/*/*.parquet")]):
        part = path.parent.name
        if part == "scores" or not (run / "scores" / f"{part}.parquet").exists():
            name = path.stem if part == "scores" else part
            with suppress(*BROKEN):  # what is damaged is made anew, or named when it is read
                counts[name] = counts.get(name, 0) + pq.read_metadata(path).num_rows
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    say(f"{run}: goes on; rows kept from before: {shown or 'none'}", to=errors)
