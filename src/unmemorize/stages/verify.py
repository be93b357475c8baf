"""Compare generated pictures with the training pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq

from unmemorize.core.crew import Crew
from unmemorize.core.results import Match
from unmemorize.core.run import Progress, digest
from unmemorize.core.shards import Row, write_rows
from unmemorize.data.pictures import save_image
from unmemorize.stages.inputs import Inputs
from unmemorize.stages.pictures import bytes_of, generated
from unmemorize.stages.stage import Stage


def _work(inputs: Inputs, run: Path, progress: Progress, crew: Crew) -> None:
    """Compare the generated pictures with the training pictures: `scores/verify.parquet` and `references/`.

    What is kept of a training picture is what was compared: its upright centre at the model's size.
    """
    check = inputs.check
    rows = generated(run)
    references, matches = check.references, check.match(bytes_of(run, rows))
    captions = dict(zip(references.names, references.captions, strict=True))
    compared = [row | _match_row(match, captions[match.nearest]) for row, match in zip(rows, matches, strict=True)]
    place = {name: row for row, name in enumerate(references.names)}
    for name in {m.nearest for m in matches}:
        save_image(references[[place[name]]].images[0], run / reference_name(name))
    write_rows(run / "scores" / "verify.parquet", compared)


def _match_row(match: Match, caption: str | None) -> Row:
    values = {"distance": match.distance, "ratio": match.value, "verdict": match.verdict}
    return {"nearest": reference_name(match.nearest), "caption": caption} | values | {"mirrored": match.mirrored}


def copied_rows(run: Path) -> list[Row]:
    """The generated pictures of a run that are copies; none where nothing was compared."""
    if not VERIFY.done(run):
        return []
    return [row for row in pq.read_table(run / "scores" / "verify.parquet").to_pylist() if row["verdict"] != "none"]


def reference_name(name: str) -> str:
    """Where a training picture is kept in the run directory."""
    # A training picture's own name may hold anything; in the run directory it is known by a hash.
    return f"references/{digest([os.fsencode(name)])[:16]}.png"


VERIFY = Stage("verify", "verify", _work)
