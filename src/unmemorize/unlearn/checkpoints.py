"""Checkpoints of a training run: one file each, whole or not there, the last two kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmemorize.core.errors import UserError
from unmemorize.core.run import atomic

LAST = 2  # should the disk spoil the last one, there is another


def save_checkpoint(folder: Path, update: int, record: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the state after an update, with its record in the file's header.

    Raises:
        UserError: It cannot be written; the checkpoints before it are whole.
    """
    with _disk(folder), atomic(folder / f"update-{update:08d}.safetensors") as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, {"run": json.dumps(record)})
    for old in _checkpoints(folder)[:-LAST]:
        old.unlink()


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The newest record and tensors that can be read, or None.

    Raises:
        UserError: The folder cannot be made.
    """
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(_checkpoints(folder)):
        try:
            with safe_open(path, "pt") as file:
                record = json.loads(file.metadata()["run"])
            return record, load_file(path)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            continue  # damaged: the one before it is whole
    return None


def write_log(folder: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Write `loss.jsonl`: a line for every update, with its number from 1."""
    lines = [json.dumps({"update": update, **row}) + "\n" for update, row in enumerate(rows, 1)]
    with _disk(folder), atomic(folder / "loss.jsonl") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def last_update(folder: Path) -> int:
    """The update of the newest checkpoint, 0 for none."""
    paths = _checkpoints(folder)
    return int(paths[-1].stem.split("-")[1]) if paths else 0


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("update-*.safetensors"))


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: cannot be written: {error}: make room and start the same command again; it goes on from the "
            "last checkpoint, which is whole"
        ) from error
