"""What an audit found copied, in the form that the commands against it take: prompts, pictures and controls."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from unmemorize.core.errors import UserError
from unmemorize.core.files import require_file
from unmemorize.core.run import load_record, new_folder
from unmemorize.data.items import inside
from unmemorize.report.schema import PROMPTS, VERIFY, read_rows


def export_copied(run: Path, out: Path) -> dict[str, int]:
    """Write the prompts that gave copies, and the training pictures, to a new folder; returns how many of each.

    `prompts.csv` has the prompts; `targets/` the pictures that were copied, each with the first prompt that copied it
    as its caption; `controls/` the pictures with a caption that were near a generated one and never copied. Pictures
    are as the run keeps them: the upright centre at the model's size.

    Raises:
        UserError: `run` holds no audit that compared pictures, or is damaged; nothing was copied, or `out` is not new.
    """
    table = run / "scores" / "verify.parquet"
    if load_record(run) is None or not table.exists():
        raise UserError(f"{run}: no audit that compared pictures: run one with --references, or finish this one")
    rows = read_rows(table, VERIFY)
    texts = {row["id"]: row["prompt"] for row in read_rows(run / "scores" / "prompts.parquet", PROMPTS)}
    copies = [row for row in rows if row["verdict"] != "none" and row["id"] in texts]
    if not copies:
        raise UserError(f"{run}: nothing was copied: there is nothing to export")
    targets: dict[str, str] = {}
    for row in copies:
        targets.setdefault(row["nearest"], texts[row["id"]])
    controls = {row["nearest"]: row["caption"] for row in rows if row["caption"] and row["nearest"] not in targets}
    prompts = list(dict.fromkeys(texts[row["id"]] for row in copies))
    with new_folder(out) as folder:
        folder.mkdir()
        with (folder / "prompts.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["prompt"], *([prompt] for prompt in prompts)])
        for name, pictures in (("targets", targets), ("controls", controls)):
            _write_pictures(run, pictures, folder / name)
    return {"prompts": len(prompts), "targets": len(targets), "controls": len(controls)}


def _write_pictures(run: Path, pictures: dict[str, str], folder: Path) -> None:
    """Pictures of the run, each with its caption in a file of the same stem."""
    folder.mkdir()
    for name, caption in pictures.items():
        source = inside(run, name)
        if source is None:
            raise UserError(f"{name}: a picture outside of {run}, which names it: run the audit again")
        require_file(source, "restore it, or run the audit again")
        target = folder / source.name
        shutil.copyfile(source, target)
        target.with_suffix(".txt").write_text(caption, encoding="utf-8", errors="replace")
