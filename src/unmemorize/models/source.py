"""What a model's folder or file is, read from its headers: before its weights, and before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.files import kind_of, require_file, require_plain
from unmemorize.core.plain import from_json

ASSETS = Path(__file__).parent.parent / "testbed" / "assets"
# The shipped models: a pipeline in `ASSETS`, and the folder of the denoiser that takes its own one's place.
SHIPPED = {
    "testbed": ("panel/trunk", "panel/c"),
    "testbed-a": ("panel/trunk", "panel/a"),
    "testbed-b": ("panel/trunk", "panel/b"),
    "testbed-c": ("panel/trunk", "panel/c"),
    "testbed-d": ("panel/trunk", "panel/d"),
    "testbed-flow-c": ("panel/flow", ""),
    "testbed-flow-d": ("panel/flow", "panel/flow-d"),
    "testbed-retrained-c": ("panel/retrained/model", ""),
    "testbed-words": ("panel/trunk", "panel/words/unet"),
}
TWICE = {"panel/flow": {"text_encoder_2": "text_encoder"}}  # parts that are shipped once, and the equal ones
DENOISERS = {"StableDiffusionPipeline": "unet", "StableDiffusion3Pipeline": "transformer"}  # of the shipped families

# The pipelines that have an adapter, and where it is.
ADAPTERS = {
    "StableDiffusionPipeline": "unmemorize.models.unet:UNetModel",
    "StableDiffusionXLPipeline": "unmemorize.models.unet:SDXLModel",
    "StableDiffusion3Pipeline": "unmemorize.models.transformer:SD3Model",
    "FluxPipeline": "unmemorize.models.flux:FluxModel",
    "ChromaPipeline": "unmemorize.models.flux:ChromaModel",
    "PixArtSigmaPipeline": "unmemorize.models.pixart:PixArtModel",
    "PixArtAlphaPipeline": "unmemorize.models.pixart:PixArtModel",
    "SanaPipeline": "unmemorize.models.pixart:SanaModel",
    "QwenImagePipeline": "unmemorize.models.language:QwenImageModel",
    "ZImagePipeline": "unmemorize.models.language:ZImageModel",
    "Flux2KleinPipeline": "unmemorize.models.language:Flux2KleinModel",
    "Flux2Pipeline": "unmemorize.models.language:Flux2Model",
    "Lumina2Pipeline": "unmemorize.models.language:Lumina2Model",
    "AuraFlowPipeline": "unmemorize.models.unmasked:AuraFlowModel",
    "CogView4Pipeline": "unmemorize.models.unmasked:CogView4Model",
    "Kandinsky5T2IPipeline": "unmemorize.models.unmasked:Kandinsky5Model",
}

# Components that are not loaded, or that a pipeline works without.
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_FILE = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
_WORDS = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")  # a tokenizer has one of these
_NAME = re.compile(r"\w+")
# Settings by what is in their names, and more than any network has: what is built of so many parts is never done.
_MOST = {"layers": 1000, "num_train_timesteps": 100_000}
_MOST_HEADER = 100_000_000  # bytes, as safetensors itself allows

# Single files are told by tensors that only one family's checkpoints have.
CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_FAMILIES = {
    "conditioner.embedders.1.model.ln_final.weight": "StableDiffusionXLPipeline",
    CROSS_ATTENTION: "StableDiffusionPipeline",
    "joint_blocks.0.context_block.adaLN_modulation.1.bias": "StableDiffusion3Pipeline",
    "distilled_guidance_layer.in_proj.bias": "ChromaPipeline",
    "double_blocks.0.img_attn.norm.key_norm.scale": "FluxPipeline",
}
_OF_LAYERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")  # of one that has a weight
_TEXT = ("cond_stage_model.", "conditioner.", "text_encoders.")


@dataclass(frozen=True)
class Source:
    """Where a model is loaded from.

    Attributes:
        path: As it was named.
        kind: What it is. A hub id is only known to be none of the others.
        family: The pipeline's class; None of a hub id.
        null: Components that it says it has none of.
        variant: The part of its weights' names that diffusers calls so, such as `fp16`.
        revision: The branch, tag or commit of a hub model; its main branch by default.
    """

    path: str
    kind: str  # "embedded", "folder", "file" or "hub"
    family: str | None = None
    null: tuple[str, ...] = ()
    variant: str | None = None
    revision: str | None = None


def examine(path: str, *, variant: str | None = None, revision: str | None = None) -> Source:
    """What a name of a model stands for.

    Args:
        path: A shipped model, a pipeline folder, a `.safetensors` checkpoint, or a hub id (owner/name).
        variant: The variant of weights that is asked for; the one that is there by default.
        revision: The branch, tag or commit of a hub model.

    Raises:
        NotApplicable: The pipeline's family has no adapter.
        UserError: There is nothing, or nothing whole, to be loaded.
    """
    source = _examined(path, variant, revision)
    if revision and source.kind != "hub":
        raise UserError(f"--revision {revision}: {path} is no hub model, which alone has revisions: leave it out")
    return source


def _examined(path: str, variant: str | None, revision: str | None) -> Source:
    if path in SHIPPED:
        index = pipeline_index(path, ASSETS / SHIPPED[path][0])
        return Source(path, "embedded", index["_class_name"], nulls(index))
    place = Path(path)
    kind = kind_of(place)
    if kind == "a folder":
        return _folder(path, place, variant)
    if kind == "a file":
        return Source(path, "file", _checkpoint(path, place))
    if kind == "nothing" and path.count("/") == 1 and not path.startswith((".", "/", "~")) and not _is_file(place):
        return Source(path, "hub", variant=variant, revision=revision)
    if kind == "nothing":
        missing = "file" if _is_file(place) else "folder"
        raise UserError(f"{path}: no such {missing}: name a pipeline folder, a hub id (owner/name) or 'testbed'")
    raise UserError(f"{path}: {kind}, not a folder: name a folder saved by pipe.save_pretrained(...)")


def require_adapter(path: str, family: str) -> str:
    """The family, if there is an adapter for it.

    Raises:
        NotApplicable: There is none.
    """
    if family not in ADAPTERS:
        raise NotApplicable(f"{path}: {family} has no adapter; those that have: {', '.join(ADAPTERS)}")
    return family


def nulls(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The components that a model_index.json says there are none of; from_pretrained wants to be told."""
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list | tuple)}
    return tuple(name for name, entry in parts.items() if len(entry) == 2 and entry[0] is None)


def lora_file(given: str) -> tuple[Path, float]:
    """The file of a LoRA and its scale, of `FILE`, `FOLDER` or `FILE:0.7`.

    Raises:
        UserError: There is no LoRA there.
    """
    place, scale = Path(given), 1.0
    head, colon, tail = given.rpartition(":")
    if colon and not place.exists() and _is_number(tail):
        place, scale = Path(head), float(tail)
    if place.is_dir():
        place = place / "pytorch_lora_weights.safetensors"
    if not is_lora(_tensors(place, "LoRA")):
        raise UserError(f"{place}: no LoRA: name a file of LoRA weights")
    return place, scale


def embedding_file(given: str) -> Path:
    """The file of a textual inversion.

    Raises:
        UserError: There is none there.
    """
    place = Path(given)
    if place.is_dir():
        place = place / "learned_embeds.safetensors"
    if not is_embedding(_tensors(place, "textual inversion")):
        raise UserError(f"{place}: no textual inversion: name a file of one word's vectors")
    return place


def _tensors(place: Path, kind: str) -> Mapping[str, Any]:
    require_file(place, f"name a {kind}'s .safetensors file")
    if place.suffix in _PICKLES:
        raise UserError(f"{place}: a pickle, which is never opened: name a .safetensors file")
    return header(place)


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def header(path: Path) -> Mapping[str, Any]:
    """The tensors of a safetensors file by name, each with its `shape`; its notes are left out.

    Raises:
        UserError: It is no safetensors file, or cut off.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= _MOST_HEADER else b""
    try:
        entries = from_json(text)
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: no safetensors file, or cut off: download it again") from error
    if path.stat().st_size < end:
        raise UserError(f"{path}: cut off, {path.stat().st_size} of {end} bytes: download it again")
    return tensors


def is_lora(tensors: Mapping[str, Any]) -> bool:
    """Whether these are a LoRA's tensors, by whichever tool's names."""
    marks = (".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.", "_lora.up.", "_lora.down.")
    return any(any(mark in name for mark in marks) for name in tensors)


def is_embedding(tensors: Mapping[str, Any]) -> bool:
    """Whether these are a textual inversion's tensors: one or two, a row a vector."""
    shapes = [entry["shape"] for entry in tensors.values()]
    return bool(shapes) and len(shapes) <= 2 and all(len(shape) <= 2 and shape[-1:] != [] for shape in shapes)


def _is_file(place: Path) -> bool:
    return place.suffix in (".safetensors", *_PICKLES)


def _folder(path: str, folder: Path, variant: str | None) -> Source:
    for level in ("*", "*/*"):  # not "**/*", which does not look into folders that are links
        require_plain(folder, level)
    index = pipeline_index(path, folder)
    family = require_adapter(path, str(index.get("_class_name")))
    null = nulls(index)
    variants: dict[str, set[str | None]] = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or name in null or name in OPTIONAL:
            continue
        if not (folder / name).is_dir():
            raise UserError(
                f"{path}: no folder {name} in it: download it whole, or save it by pipe.save_pretrained(...)"
            )
        if name.startswith("tokenizer") and not any((folder / name / file).exists() for file in _WORDS):
            # Without them transformers makes up a tokenizer, which knows no word.
            raise UserError(f"{path}: no words in its {name}: download it again")
        if name.startswith("tokenizer") and not (folder / name / "tokenizer_config.json").exists():
            raise UserError(f"{path}: no tokenizer_config.json in its {name}: download it again")
        for file in sorted((folder / name).glob("*config.json")):
            _check_config(path, file)
        if (folder / name / "config.json").exists():
            variants[name] = _variants(path, folder / name)
    return Source(path, "folder", family, null, _variant(path, variants, variant))


def pipeline_index(path: str, folder: Path) -> dict[str, Any]:
    """The model_index.json of a pipeline's folder.

    Raises:
        UserError: There is none, or it is not one.
    """
    file = folder / "model_index.json"
    if not file.exists():
        raise UserError(f"{path}: no model_index.json: {_instead(folder)}")
    index = _object(file)
    if index is None or "_class_name" not in index or not all(map(_is_entry, index.items())):
        raise UserError(f"{path}: its model_index.json is none: download it again")
    return index


def _is_entry(entry: tuple[str, Any]) -> bool:
    """Whether an entry of an index is a setting, or a component: its folder's name, its library and class."""
    name, value = entry
    if not isinstance(value, list):
        return True
    return bool(_NAME.fullmatch(name)) and len(value) == 2 and all(isinstance(part, str | None) for part in value)


def _instead(folder: Path) -> str:
    """What to do with a folder that is no pipeline's."""
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "adapter_config.json").exists() or (folder / "pytorch_lora_weights.safetensors").exists():
        return f"it holds a LoRA: name the model that it was made for, `MODEL --lora {folder}`"
    if (folder / "config.json").exists():
        return "it is one component: name the folder of the whole pipeline"
    if len(files) == 1:
        return f"name the file in it, {files[0].name}"
    return "name a folder saved by pipe.save_pretrained(...)"


def _check_config(path: str, file: Path) -> None:
    """Refuse what is no configuration, or one of a network that would take hours, or all memory, to build.

    Raises:
        UserError: It is.
    """
    config = _object(file)
    where = f"{path}: its {file.parent.name}/{file.name}"
    if config is None:
        raise UserError(f"{where} is no configuration: download it again")
    for name, value in config.items():
        most = next((most for part, most in _MOST.items() if part in name), None)
        for number in value if isinstance(value, list) else [value]:
            if most is not None and isinstance(number, int | float) and not number <= most:
                raise UserError(f"{where}: {name} {number:.3g}: download it again")


def _object(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where it holds none."""
    try:
        document = from_json(file.read_bytes())
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _variants(path: str, part: Path) -> set[str | None]:
    """The variants that a component's weights are there in, each whole; None is the plain one."""
    files = {file.name: _FILE.fullmatch(file.name) for file in part.glob("*.safetensors")}
    variants = {match["variant"] for match in files.values() if match}
    if not variants:
        pickled = sorted(file.name for file in part.iterdir() if file.suffix in _PICKLES)
        if pickled:
            raise UserError(
                f"{path}: its {part.name} comes as {pickled[0]}, a pickle, which is never opened: "
                "save it once more, by pipe.save_pretrained(...), where you trust it"
            )
        raise UserError(f"{path}: no weights in its {part.name}: download it again")
    for index in part.glob("*.safetensors.index*.json"):
        weights = (_object(index) or {}).get("weight_map")
        if not isinstance(weights, dict):
            raise UserError(f"{path}: {part.name}/{index.name} lists no weights: download it again")
        named = set(map(str, weights.values()))
        if named - set(files):
            raise UserError(
                f"{path}: {len(named - set(files))} of {len(named)} files missing in its {part.name}: download it again"
            )
    quantized = "quantization_config" in (_object(part / "config.json") or {})  # which says what the scales are for
    for name, match in files.items():
        if match:
            tensors = header(part / name)
            if part.name.startswith("text_encoder") and not quantized:
                _require_plain(f"{path}: {{}} of the weights of its {part.name}", tensors)
    return variants


def _require_plain(what: str, tensors: Mapping[str, Any]) -> None:
    """Refuse weights that come with scales or the like: without them, which no loader reads, they mean something else.

    Args:
        what: How the message begins, with a place for their number.
        tensors: All that lie in a file.

    Raises:
        UserError: There are tensors beside the weight of a layer that are none of its own.
    """
    beside = []
    for name in tensors:
        layer, _, own = name.rpartition(".")
        if layer in tensors or (f"{layer}.weight" in tensors and own not in _OF_LAYERS):
            beside.append(name)
    if beside:
        raise UserError(
            f"{what.format(len(beside))}, such as {min(beside)}, say how others were quantized, which is not read: "
            "name a model in float32, float16 or bfloat16"
        )


def _variant(path: str, of_parts: Mapping[str, set[str | None]], wanted: str | None) -> str | None:
    """The variant to load: the one asked for, else the plain one, else the one that all of them have."""
    named = sorted(filter(None, set().union(*of_parts.values())))
    if wanted is not None and wanted not in named:
        raise UserError(f"{path}: no variant {wanted} in it" + (f": there is {', '.join(named)}" if named else ""))
    for candidate in [None, *named] if wanted is None else [wanted]:
        if all(variants & {None, candidate} for variants in of_parts.values()):
            return candidate
    raise UserError(f"{path}: its components come in different variants: download it whole, in one of them")


def _checkpoint(path: str, file: Path) -> str:
    """The family of a single-file checkpoint."""
    if file.suffix in _PICKLES:
        raise UserError(f"{path}: a pickle, which is never opened: name a .safetensors file")
    if file.suffix == ".gguf":
        raise UserError(f"{path}: a GGUF file, whose weights are quantized: name the folder of the whole pipeline")
    if file.suffix != ".safetensors":
        raise UserError(f"{path}: a file, not a folder: name a pipeline folder or a .safetensors checkpoint")
    tensors = header(file)
    if is_lora(tensors):
        raise UserError(f"{path}: a LoRA: name the model that it was made for, `MODEL --lora {path}`")
    _require_plain(f"{path}: {{}} of its weights", tensors)
    names = {name.removeprefix("model.diffusion_model.") for name in tensors} | set(tensors)
    family = next((family for mark, family in _FAMILIES.items() if mark in names), None)
    if family is None and is_embedding(tensors):
        raise UserError(f"{path}: a textual inversion: name the model that it was made for, `MODEL --embedding {path}`")
    if family is None:
        raise UserError(f"{path}: no checkpoint of a family that is known: name the folder of the whole pipeline")
    require_adapter(path, family)
    if not any(name.startswith(_TEXT) for name in tensors):
        raise UserError(f"{path}: a denoiser alone, without text encoder: name the folder of the whole pipeline")
    if not any(name.startswith(("first_stage_model.", "vae.")) for name in tensors):
        raise UserError(f"{path}: a checkpoint without VAE: name the folder of the whole pipeline")
    return family
