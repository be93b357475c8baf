"""Hostile runs, models, command lines and texts, made from a seeded generator in an empty folder."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from pathlib import Path
from random import Random
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from hostile.damage import NUMBERS, damaged_bytes, damaged_document, damaged_folder, text, value
from hostile.judge import Input, acting
from unmemorize import cli
from unmemorize.cli import terminal
from unmemorize.core.methods import Detector, Explainer, Kind, Subject, describe, methods, parse
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.sample import Sampler, generate
from unmemorize.core.specs import AttackSpec, AuditSpec, DetectSpec, LocalitySpec, LocateSpec, MitigateSpec, TriggerSpec
from unmemorize.data.pictures import png
from unmemorize.metrics.similarity import References
from unmemorize.metrics.sscd import load_sscd, match_sscd, sscd_criterion
from unmemorize.mitigate.edit import Edit, EditFile, random_like
from unmemorize.models.load import load
from unmemorize.models.pipeline import PipelineModel
from unmemorize.report.compare import build_comparison
from unmemorize.report.rebuild import rebuild_report
from unmemorize.stages.detect import require_finite
from unmemorize.stages.export import export_copied


def runs(sound: Path, rng: Random, folder: Path) -> Input:
    """A run that was damaged since an audit made it: its page, its comparison with a sound one, what is exported."""
    run = shutil.copytree(sound, folder / "run", copy_function=shutil.copyfile)
    names = [damaged_folder(rng, run) for _ in range(rng.choice((1, 1, 2)))]
    uses: dict[str, Callable[[], object]] = {
        "report": lambda: rebuild_report(run),
        "compare": lambda: build_comparison(run, sound, folder / "compare.html"),
        "export": lambda: export_copied(run, folder / "copied"),
    }
    what = rng.choice(list(uses))

    def use() -> None:
        uses[what]()
        for page in folder.rglob("*.html"):
            content = page.read_text(encoding="utf-8")
            assert not [part for part in ("<script>alert", "\0", "\x1b") if part in content]

    return Input(f"{what}: {names}", use)


def models(sound: Path, rng: Random, folder: Path) -> Input:
    """A pipeline's folder with a damaged file: it is loaded, and a picture is sampled with it."""
    place = shutil.copytree(sound, folder / "model", copy_function=shutil.copyfile)
    name = damaged_folder(rng, place)

    def use() -> None:
        model = load(str(place), device="cpu")
        generate(model, model.encode(["a red boat"]), seeds=[0], sampler=Sampler(2))

    return Input(name, use)


@cache
def _loaded(folder: Path) -> PipelineModel:
    return load(str(folder), device="cpu")


def edits(sound: Path, rng: Random, folder: Path) -> Input:
    """An edit for modules of any name, of any shape, from any origin, or damaged: it is applied, and has a control."""
    model = _loaded(sound)
    weights = {name: value for name, value in model.denoiser.named_parameters() if value.ndim == 2}
    places, shapes = {}, {}
    for _ in range(rng.randrange(1, 4)):
        layer = rng.choice(sorted(weights))
        shape = list(weights[layer].shape)
        shape = rng.choice(
            (shape, shape, shape[:1], shape[::-1], [0], [-4, 4], [2**40, 2**40], [2**16, 2**15], [2] * 3)
        )
        module = layer.removesuffix(".weight") if rng.random() < 0.6 else text(rng).replace("\0", "")[:3000]
        name = rng.choice(("weights/", "weights/", "channels/", "")) + module
        shapes[name] = shape
        kind = torch.int32 if rng.random() < 0.8 else rng.choice((torch.int64, torch.float32))
        places[name] = torch.tensor(rng.choice(([0], [1, 2], [-1], [2**30], [])), dtype=kind)
    content = save(places, rng.choice((None, {text(rng): text(rng)})))
    origin = {"method": text(rng), "parameters": {text(rng): text(rng)}, "seeds": [0], "prompts": [text(rng)]}
    record = {"fingerprint": rng.choice((model.fingerprint, text(rng))), "origins": [origin], "shapes": shapes}
    written = json.dumps(record | {"schema_version": 1, "sha256": hashlib.sha256(content).hexdigest()}).encode()
    path = folder / "edit.safetensors"
    path.write_bytes(damaged_bytes(rng, content) if rng.random() < 0.1 else content)
    path.with_suffix(".json").write_bytes(damaged_document(rng, written) if rng.random() < 0.3 else written)

    def use() -> None:
        edit = Edit.load(path)
        with edit.applied(Subject(model)):
            assert edit.selected >= 0
        random_like(edit, model.denoiser, 0)
        EditFile(str(path)).fitted(Subject(model))

    return Input(f"{list(shapes.items())!r:.150}", use)


def additions(sound: Path, rng: Random, folder: Path) -> Input:
    """A LoRA or a textual inversion as tools write them, for this model or another, or damaged: it is loaded."""
    model, path = _loaded(sound), folder / "added.safetensors"
    tensors = _lora(rng, model) if rng.random() < 0.6 else _inversion(rng)
    content = save(tensors, rng.choice((None, {text(rng): text(rng)})))
    path.write_bytes(damaged_bytes(rng, content) if rng.random() < 0.2 else content)
    what = {"lora": [f"{path}{rng.choice(('', '', ':0.5', ':nan', ':1e300', ':-1'))}"]}
    if rng.random() < 0.5:
        what = {"embedding": [str(path)]}

    def use() -> None:
        changed = load(str(sound), device="cpu", **what)
        generate(changed, changed.encode(["an owl added"]), seeds=[0], sampler=Sampler(2))

    return Input(f"{list(what)} {list(tensors)!r:.150}", use)


def _lora(rng: Random, model: PipelineModel) -> dict[str, Tensor]:
    layers = [name for name, part in model.denoiser.named_modules() if name.endswith(("to_q", "to_v", "to_k"))]
    tensors = {}
    for _ in range(rng.randrange(1, 4)):
        layer, rank = rng.choice(layers), rng.choice((1, 2, 2, 0))
        out, width = model.denoiser.get_submodule(layer).weight.shape
        down = torch.full((rank, rng.choice((width, width, width, 3))), rng.choice((0.1, 0.1, math.nan, 1e38)))
        up = torch.full(
            (out, rank), rng.choice((0.1, 0.0)), dtype=rng.choice((torch.float32, torch.float32, torch.int8))
        )
        start = rng.choice(("unet.", "unet.", "lora_unet_", "transformer.", "", text(rng).replace("\0", "")[:300]))
        module = layer.replace(".", "_") if start == "lora_unet_" else layer
        first, second = rng.choice(((".lora_A", ".lora_B"), (".lora_down", ".lora_up"), (".lora.down", ".lora.up")))
        tensors[f"{start}{module}{first}.weight"] = down
        if rng.random() < 0.9:
            tensors[f"{start}{module}{second}.weight"] = up
        if rng.random() < 0.3:
            tensors[f"{start}{module}.alpha"] = torch.tensor(rng.choice((1.0, 0.0, math.inf, -1.0)))
    return tensors


def _inversion(rng: Random) -> dict[str, Tensor]:
    name = rng.choice(("added", "added", "emb_params", "clip_l", "owl", text(rng).replace("\0", "")[:300]))
    shape = rng.choice(((16,), (1, 16), (3, 16), (2, 5), (0, 16), (), (1, 1, 16), (400, 16)))
    vectors = torch.full(shape, rng.choice((0.1, math.nan, 1e38)))
    return {name: vectors} | ({text(rng).replace("\0", "")[:50]: vectors.clone()} if rng.random() < 0.1 else {})


class _Network(torch.nn.Module):
    """What somebody takes for an SSCD network."""

    def __init__(self, way: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.way, self.shape = way, shape

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "sound":
            return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        if self.way == "not finite":
            return x.mean(dim=(2, 3)) / 0
        if self.way == "raises":
            raise ValueError("wrong\n input")
        return torch.ones(self.shape)


def criteria(rng: Random, folder: Path) -> Input:
    """A copy-detection network that gives something else, or nothing, or is damaged: pictures are compared by it."""
    way = rng.choice(("sound", "not finite", "raises", "other"))
    shape = rng.choice(((2,), (), (2, 3, 4), (1, 5), (2, 0), (0, 4), (7, 4), (2, 4)))
    path = folder / rng.choice(("a.pt", "a.torchscript.pt", "a.onnx", "a"))
    torch.jit.script(_Network(way, shape)).save(str(path))
    if rng.random() < 0.3:
        path.write_bytes(damaged_bytes(rng, path.read_bytes()))
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    references = References(("a", "b"), pixels, (None, None), (None, None))

    def use() -> None:
        criterion = sscd_criterion(path, rng.choice(("sscd-320", "sscd-wen", text(rng)[:100])))
        match_sscd(pixels, references, criterion, load_sscd(path))

    return Input(f"{path.name}: {way} {shape}", use)


def method_settings(sound: Path, rng: Random, folder: Path) -> Input:
    """A method with settings at the ends of what they may be, and beyond: it works, or says which setting is wrong."""
    model = _loaded(sound)
    kind: Kind = rng.choice(("detector", "detector", "explainer", "mitigation", "mitigation"))
    name = rng.choice(sorted(set(methods(kind)) - {"located", "edit"}))
    facts = describe(methods(kind)[name])["settings"]
    typed = []
    for setting in rng.sample(sorted(facts), min(len(facts), rng.choice((0, 1, 1, 2)))):
        small = (0, 1, -1, 2, 10**40) if facts[setting]["type"] == "int" else (*NUMBERS, 1e-300, 1e-7, 0.999)
        typed.append(f"{setting}={rng.choice((*small, *small, text(rng)[:100].replace(',', ' ')))}")
    written = ":".join(filter(None, (name, ",".join(typed))))
    subject, cond = Subject(model, Sampler(2)), model.encode(["an owl on a fence"])

    def use() -> None:
        method = parse(kind, written)
        if isinstance(method, Detector):
            require_finite(model.name, method, method.score(subject, cond, seeds=[0]))
        elif isinstance(method, Explainer):
            method.explain(subject, "an owl on a fence", seeds=[0])
        else:
            fitted = method.fitted(subject, prompts=cond, ordinary=model.encode(["a bicycle"] * 3), seeds=[0])
            with fitted.applied(subject) as changed:
                png(generate(changed.model, cond, seeds=[0], sampler=changed.sampler)[0])

    return Input(f"{kind} {written!r:.200}", use)


SPECS = {
    "attack": AttackSpec,
    "audit": AuditSpec,
    "detect": DetectSpec,
    "locality": LocalitySpec,
    "locate": LocateSpec,
    "mitigate": MitigateSpec,
    "triggers": TriggerSpec,
}


def arguments(rng: Random, folder: Path) -> Input:
    """A command line that is refused: a model that is not there, an option of any value, outputs anywhere."""
    command = rng.choice((*SPECS, "data", "report", "compare", "export", "methods", "generate", "explain"))
    words = [command, "./nowhere"]
    for _ in range(rng.randrange(1, 4)):
        known = SPECS.get(command)
        names = [field.name for field in fields(known)] if known else ["out", "run", "json", "evidence"]
        option = rng.choice((*names, "run", "out", "part", text(rng)[:30]))
        words += [f"--{option.replace('_', '-')}", rng.choice((str(rng.choice(NUMBERS)), text(rng)))]
    words = [word.replace("\0", "").encode("utf-8", "replace").decode() for word in words]

    def use() -> None:
        with patch.object(sys, "argv", ["unmemorize", *words]), patch.object(Path, "cwd", lambda: folder):
            cli.main()

    return Input(str(words)[:300], use)


def outputs(rng: Random, folder: Path) -> Input:
    """Where somebody wants results to go."""
    (folder / "there").mkdir()
    (folder / "file").write_text("x")
    (folder / "loop").symlink_to("loop")
    names = (
        "there",
        "file",
        "file/x",
        "loop",
        "loop/x",
        "there/..",
        "a" * 300,
        "/dev/null",
        "/proc/self/mem",
        text(rng),
    )
    places = [folder / rng.choice(names) for _ in range(2)]
    kinds = [rng.choice(("file", "new", "run", "folder")) for _ in places]
    given = [Output("--out", place, kind) for place, kind in zip(places, kinds, strict=True)]
    return Input(str(given)[:300], lambda: check_outputs(given, [str(folder / rng.choice(names))]))


def texts(rng: Random, folder: Path) -> Input:
    """A text that is said, complained of, typed next, shown in a table and printed as JSON."""
    given, other = text(rng), value(rng)

    def use() -> None:
        file = io.StringIO()
        screen = Console(file=file, force_terminal=True, color_system=None, width=rng.choice((20, 80, 200)))
        table = Table("a", "b")
        with patch.object(terminal, "out", screen), patch.object(terminal, "errors", screen), redirect_stdout(file):
            terminal.say(given, to=screen)
            terminal.complain(given)
            terminal.next_step("explain", given)
            terminal.add_row(table, given, other)
            screen.print(table)
        printed = io.StringIO()
        with redirect_stdout(printed):
            terminal.print_json({"a": other, given: 1})
        json.loads(printed.getvalue(), parse_constant=lambda name: 1 / 0)
        assert acting(file.getvalue() + printed.getvalue()) == []

    return Input(repr(given)[:300], use)
