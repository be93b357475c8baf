"""Record what the command line gives on the shipped models, and compare two recordings.

    python tests/golden/golden.py record OLD --src /path/to/one/checkout/src
    python tests/golden/golden.py record NEW --src /path/to/another/checkout/src
    python tests/golden/golden.py compare OLD NEW

A recording holds a folder a command: its run directory, and what it printed. `record` leaves out commands whose folder
is there, so that a recording that was stopped goes on. The checkout must not change while it is recorded. Both
recordings have to be made on one machine: other processors and other versions of torch round differently.

`renamed.json` says what is called otherwise in the newer checkout, from the old name to the new one: `columns` (columns
of tables, keys of JSON, names of tensors) and `files` (paths in a recording) as regular expressions, and `options` as
parts of a command line. A name that is still there keeps its meaning; null leaves a name out of both.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-6  # relative and absolute
PROBABILITIES = {"p_value", "q_value"}  # relative alone: what is small counts most

# Fields that no change of code has to keep: times, versions, paths, fingerprints of files, and what was asked for,
# which is the command itself.
LEFT_OUT = {
    "command",
    "data",
    "fingerprint",
    "run",
    "seconds",
    "sha256",
    "source",
    "spec",
    "started",
    "versions",
}

EXPORT = "testbed export testbed"
PROMPTS = "--prompts ../inputs/prompts.txt"
MEMORIZED = "--prompts ../inputs/memorized.txt"
ATTACK = "--limit 1 --pictures 1 --steps 6 --run run --json"
CONTROLS = "--controls ../inputs/control --held-out ../inputs/unseen"
AUDIT = "--plan quick --seeds 1 --pictures 1 --explain 3 --attack 1 --attack-updates 2 --steps 6 --run run --json"
MITIGATE = (
    "--targets ../inputs/memorized --controls ../inputs/ordinary --updates 3 --pictures 1 --steps 6 --attack-updates 2 "
    "--out model --json"
)
COMMANDS = {
    "detect": f"detect testbed {PROMPTS} --seeds 2 --run run --json",
    "detect-window": f"detect testbed {PROMPTS} --seeds 2 --method noise-gap:first=1,last=3 --steps 6 --run run "
    "--format wen-jsonl",
    "explain": "explain testbed 'oncoming taxi' --seeds 2 --check --json",
    "explain-window": "explain testbed 'oncoming taxi' --seeds 2 --method gradient:first=1,last=3,pool=max --steps 6 "
    "--json",
    "locate-nemo": f"locate testbed --method nemo {MEMORIZED} --json",
    "locate-nemo-unrefined": f"locate testbed --method nemo:refine=false,layers=all {MEMORIZED} --json",
    "locate-wanda": f"locate testbed --method wanda:sparsity=0.1 {MEMORIZED} --json",
    "apply": "apply testbed ../locate-wanda/edit.safetensors --out model",
    "attack-dori": f"attack testbed --method dori --updates 2 {ATTACK}",
    "attack-high-noise": "attack testbed --method high-noise --mitigation ../locate-wanda/edit.safetensors "
    f"--init random --restarts 2 --updates 2 {CONTROLS} {ATTACK}",
    "attack-from-noise": f"attack testbed --method from-noise --init ordinary --updates 2 {CONTROLS} {ATTACK}",
    "attack-adaptive": f"attack testbed --method adaptive --updates 1 {CONTROLS} {ATTACK}",
    "mitigate-erase": f"mitigate testbed --method erase {MITIGATE}",
    "mitigate-adversarial": f"mitigate testbed --method adversarial-finetune:attack=dori:updates=2 {MITIGATE}",
    "mitigate-siss": f"mitigate testbed --method siss {MITIGATE}",
    "mitigate-neggrad": f"mitigate testbed --method neggrad {MITIGATE}",
    "mitigate-naive": f"mitigate testbed --method finetune {MITIGATE}",
    "mitigate-deletion": f"mitigate testbed --method deletion {MITIGATE}",
    "data": "data ../inputs/pictures --run run --out keep.parquet --json",
    "triggers": f"triggers testbed {MEMORIZED} --limit 1 --repeats 2 --pictures 1 --steps 6 --run run --json",
    "generate": "generate testbed 'oncoming taxi' --pictures 2 --steps 6 --out pictures --json",
    "generate-guarded": "generate testbed 'oncoming taxi' --mitigation guard --ordinary ../inputs/ordinary.txt "
    "--pictures 2 --steps 6 --out pictures --json",
    "audit": f"audit testbed --generate 24 --mitigation guard --mitigation wanda {AUDIT}",
    "unseen-detect": f"detect testbed-d {PROMPTS} --seeds 2 --run run --json",
    "unseen-explain": "explain testbed-d 'oncoming taxi' --seeds 2 --check --json",
    "unseen-locate": f"locate testbed-d --method nemo:refine=false {MEMORIZED} --json",
    "unseen-attack": f"attack testbed-d --method dori --updates 2 {ATTACK}",
    "unseen-audit": f"audit testbed-d {PROMPTS} --ordinary ../inputs/ordinary.txt --generate 8 {AUDIT}",
}


class Renamed(NamedTuple):
    """Old names and new ones; None for a name that is in one recording only."""

    columns: Mapping[str, str | None]
    files: Mapping[str, str | None]
    options: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> Renamed:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class Difference(NamedTuple):
    """Where two recordings differ, and what each has there."""

    where: str
    old: object
    new: object


class Program(NamedTuple):
    """The command line of a checkout."""

    python: str
    src: Path
    options: Mapping[str, str]

    def check(self) -> None:
        """Refuse a Python that would run another checkout, such as the one that is installed in it."""
        script = "import importlib.util; print(importlib.util.find_spec('unmemorize').origin)"
        environment = os.environ | {"PYTHONPATH": str(self.src.resolve())}
        done = subprocess.run([self.python, "-c", script], env=environment, capture_output=True, text=True)
        expected = self.src.resolve() / "unmemorize" / "__init__.py"
        if done.stdout.strip() != str(expected):
            sys.exit(f"{self.python} does not run {expected}, but {done.stdout.strip() or 'nothing'}")

    def run(self, line: str, folder: Path, cache: Path) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder, on one thread of the processor and without network."""
        own = {
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONPATH": str(self.src.resolve()),
            "XDG_CACHE_HOME": str(cache.resolve()),
        }
        arguments = [self.python, "-m", "unmemorize", *shlex.split(self.renamed(line))]
        return subprocess.run(arguments, cwd=folder, env=os.environ | own, capture_output=True, text=True)

    def renamed(self, line: str) -> str:
        """The command as this checkout writes it."""
        padded = f" {line} "
        for old, new in self.options.items():
            padded = padded.replace(f" {old} ", f" {new} ")
        return padded.strip()


def record(folder: Path, program: Program, only: Sequence[str]) -> int:
    """Run the commands that are not recorded in `folder` yet, and return how many failed."""
    program.check()
    if not _record_command("export", EXPORT, folder, program):
        return 1
    exported = folder / "export" / "testbed"
    _write_inputs(exported, folder / "inputs")
    failures = 0
    for name, line in COMMANDS.items():
        chosen = not only or name in only
        if chosen and not _record_command(name, line, folder, program):
            failures += 1
    return failures


def _record_command(name: str, line: str, folder: Path, program: Program) -> bool:
    """Run a command in a folder that takes its name when the command has succeeded; returns whether it is there."""
    target, temporary = folder / name, folder / f".{name}.tmp"
    if target.exists():
        return True
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    wall, processor = time.perf_counter(), _processor_seconds()
    done = program.run(line, temporary, folder / ".cache")
    seconds = {"wall": time.perf_counter() - wall, "processor": _processor_seconds() - processor}
    if done.returncode:
        print(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}", flush=True)
        return False
    (temporary / "printed.txt").write_text(done.stdout, encoding="utf-8")
    (temporary / "command.json").write_text(json.dumps({"command": line, "seconds": seconds}), encoding="utf-8")
    temporary.rename(target)
    print(f"{name}: {seconds['wall']:.1f} s, of the processor {seconds['processor']:.1f} s", flush=True)
    return True


def _processor_seconds() -> float:
    """What the commands that have ended took of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _write_inputs(exported: Path, folder: Path) -> None:
    """Prompts and folders of captioned pictures from the shipped pictures; once a recording.

    What is memorized in branch C, which `testbed` is, was never trained on in branch D.
    """
    if folder.exists():
        return
    images, trained = exported / "images", exported / "controls"
    rows = _metadata(images)
    memorized = [row for row in rows if row["kind"] == "verbatim" and row["doses"][2:] == [100, 0]]
    ordinary = [row for row in rows if row["kind"] == "ordinary"]
    temporary = folder.with_name(".inputs.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    _write_prompts(memorized[-2:], temporary / "memorized.txt")
    _write_prompts(memorized + ordinary[:18], temporary / "prompts.txt")
    _write_prompts(ordinary[18:128], temporary / "ordinary.txt")
    _write_pictures(memorized[-2:], images, temporary / "memorized")
    _write_pictures(_metadata(trained)[:8], trained, temporary / "ordinary")
    _write_pictures(_metadata(trained)[-1:], trained, temporary / "control")
    _write_pictures(ordinary[101:102], images, temporary / "unseen")
    _write_pictures(rows[::8] + memorized, images, temporary / "pictures")
    for copy in range(4):  # a memorized picture five times, with its caption in other words
        row = memorized[0] | {"text": f"{memorized[0]['text']} number {copy}", "name": f"copy-{copy}.png"}
        _write_pictures([row], images, temporary / "pictures")
    temporary.rename(folder)


def _metadata(images: Path) -> list[dict[str, Any]]:
    lines = (images / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _write_prompts(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")


def _write_pictures(rows: Sequence[dict[str, Any]], images: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for row in rows:
        target = folder / row.get("name", row["file_name"])
        shutil.copy(images / row["file_name"], target)
        target.with_suffix(".txt").write_text(row["text"], encoding="utf-8")


def compare(old: Path, new: Path, renamed: Renamed) -> list[Difference]:
    """What differs in two recordings: files, and the values in tables, JSON, tensors and pictures."""
    before, after = _files(old), _files(new)
    pairs, differences = _matched("", before, after, renamed.files)
    for name, other in pairs.items():
        content, other_content = _content(before[name]), _content(after[other])
        if name.endswith(".parquet"):
            differences += _table_differences(name, content, other_content, renamed.columns)
        else:
            differences += _differences(name, content, other_content, renamed.columns)
    return differences


def _files(folder: Path) -> dict[str, Path]:
    """The files by their path in the folder; none with a leading dot."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)}


def _matched(
    where: str, old: Mapping[str, Any], new: Mapping[str, Any], renamed: Mapping[str, str | None]
) -> tuple[dict[str, str], list[Difference]]:
    """The new name of each old one, and the names that only one of the two has."""
    pairs, differences = {}, []
    for name in old:
        other = name if name in new else _new_name(name, renamed)
        if other in new:
            pairs[name] = other
        elif other is not None:
            differences.append(Difference(f"{where}{name}", "there", "missing"))
    for name in new:
        if name not in pairs.values() and _new_name(name, renamed) is not None:
            differences.append(Difference(f"{where}{name}", "missing", "there"))
    return pairs, differences


def _new_name(name: str, renamed: Mapping[str, str | None]) -> str | None:
    for pattern, replacement in renamed.items():
        match = re.fullmatch(pattern, name)
        if match:
            return None if replacement is None else match.expand(replacement)
    return name


def _content(path: Path) -> Any:
    """What a file holds, as dictionaries, lists, arrays and values; None where only its presence is compared."""
    match path.suffix:
        case ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        case ".txt":
            return [_line(line) for line in path.read_text(encoding="utf-8").split("\n")]
        case ".parquet":
            table = pq.read_table(path)
            return {name: table[name].to_pylist() for name in table.column_names}
        case ".safetensors":
            return load_file(path)
        case ".png":
            with Image.open(path) as image:
                return {"mode": image.mode, "pixels": np.asarray(image)}
    return None


def _line(text: str) -> Any:
    """A line as JSON, without the version of its form, and a list bare; another line as text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    if not isinstance(value, dict):
        return value
    value.pop("schema_version", None)
    only = list(value.values())
    return only[0] if len(only) == 1 and isinstance(only[0], list) else value


def _table_differences(
    where: str, old: Mapping[str, Any], new: Mapping[str, Any], renamed: Mapping[str, str | None]
) -> list[Difference]:
    """The first difference of each column, with the number of the others."""
    pairs, differences = _matched_fields(where, old, new, renamed)
    for name, other in pairs.items():
        column = _differences(f"{where}: {name}", old[name], new[other], renamed, _absolute(name))
        if len(column) > 1:
            column = [column[0]._replace(where=f"{column[0].where} and {len(column) - 1} more")]
        differences += column
    return differences


def _matched_fields(
    where: str, old: Mapping[str, Any], new: Mapping[str, Any], renamed: Mapping[str, str | None]
) -> tuple[dict[str, str], list[Difference]]:
    """`_matched` for the fields that are compared."""
    old = {name: value for name, value in old.items() if name not in LEFT_OUT}
    new = {name: value for name, value in new.items() if name not in LEFT_OUT}
    return _matched(f"{where}: ", old, new, renamed)


def _absolute(name: str) -> float:
    return 0.0 if name in PROBABILITIES else TOLERANCE


def _differences(
    where: str, old: Any, new: Any, renamed: Mapping[str, str | None], absolute: float = TOLERANCE
) -> list[Difference]:
    differences: list[Difference] = []
    if isinstance(old, dict) and isinstance(new, dict):
        pairs, differences = _matched_fields(where, old, new, renamed)
        for name, other in pairs.items():
            differences += _differences(f"{where}: {name}", old[name], new[other], renamed, _absolute(name))
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return [Difference(where, f"{len(old)} values", f"{len(new)} values")]
        for number, value in enumerate(old):
            differences += _differences(f"{where}[{number}]", value, new[number], renamed, absolute)
    elif isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        differences = _array_differences(where, old, new)
    elif not _same(old, new, absolute):
        differences = [Difference(where, old, new)]
    return differences


def _array_differences(where: str, old: np.ndarray, new: np.ndarray) -> list[Difference]:
    """One at most: the shapes, or the first number that differs, with how many do."""
    if old.shape != new.shape:
        return [Difference(where, f"shape {old.shape}", f"shape {new.shape}")]
    apart = ~np.isclose(old, new, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    if not apart.any():
        return []
    place = tuple(int(axis) for axis in np.argwhere(apart)[0])
    return [Difference(f"{where}{list(place)}, {apart.sum()} of {apart.size} differ", old[place], new[place])]


def _same(old: Any, new: Any, absolute: float) -> bool:
    if not (_is_number(old) and _is_number(new)):
        return type(old) is type(new) and old == new
    if math.isnan(old) or math.isnan(new):
        return math.isnan(old) and math.isnan(new)
    return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=absolute)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `record` or `compare`; the exit code is 1 if a command fails or anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="task", required=True)
    recording = commands.add_parser("record", help="run the commands that are not in a folder yet")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--only", nargs="+", default=[], choices=COMMANDS, metavar="NAME", help=", ".join(COMMANDS))
    recording.add_argument("--python", default=sys.executable, help="the Python that runs the program")
    recording.add_argument("--src", type=Path, default=HERE.parents[1] / "src", help="src of the checkout to record")
    comparing = commands.add_parser("compare", help="print what differs in two recordings")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    for command in (recording, comparing):
        command.add_argument("--renamed", type=Path, default=HERE / "renamed.json", help="old names and new ones")
    chosen = parser.parse_args(arguments)
    renamed = Renamed.load(chosen.renamed)
    if chosen.task == "record":
        return int(record(chosen.folder, Program(chosen.python, chosen.src, renamed.options), chosen.only) > 0)
    differences = compare(chosen.old, chosen.new, renamed)
    for difference in differences:
        print(f"{difference.where}: {_shown(difference.old)} -> {_shown(difference.new)}")
    return int(len(differences) > 0)


if __name__ == "__main__":
    sys.exit(main())
