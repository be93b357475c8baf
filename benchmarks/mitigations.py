"""Every mitigation in one table, of what the other measurements wrote: what it leaves, what attacks find, its cost.

    python benchmarks/mitigations.py

Writes docs/results/mitigations.{json,md}. It measures nothing: a cell is empty where nothing was measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from common import OUT, Row, show, table, write
from erase import cells

from unmemorize.metrics.ranking import share_interval

SEARCHED = "memorized | nearest words | all words"  # the search for a prompt that finds most


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = read("untrained") | read("erase")
    adaptive = {name.split(" | ")[0]: groups for name, groups in read("stronger").items() if name.endswith("adaptive")}
    typed = {name.split(" | ")[0]: rows for name, rows in read("prompt-search").items() if name.endswith(SEARCHED)}
    rows = {}
    for name, row in found.items():
        dear = {
            "adaptive attack": rate([p["copied"][-1] for p in adaptive.get(name, {}).get("memorized", ())]),
            "its control": rate([p["copied"][-1] for p in adaptive.get(name, {}).get("trained on once", ())]),
            "prompt search": rate([p["copied"] for p in typed.get(name, ())]),
        }
        shown = cells(row)
        left = {column: shown.pop(column) for column in ("own prompts", "DoRI, from the prompt", "DoRI, from N(0, I)")}
        rows[name] = left | dear | shown
    write("mitigations", rows, page(rows))


def read(name: str) -> Row:
    """Another measurement's settings, empty if it has not been made."""
    path = OUT / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["settings"] if path.exists() else {}


def rate(hits: Sequence[list[bool]]) -> str:
    """The share of copies with its interval over pictures, or a dash."""
    return show(share_interval(hits), 2) if hits else "–"


def page(rows: dict[str, dict[str, str]]) -> list[str]:
    """The numbers as a page."""
    return [
        "Copy rates with 95% intervals. The pictures are those that the model copied before, four seeds each; for the "
        "adaptive attack all that the VAE can bring back, two seeds, and its control pictures that were trained on "
        "once; for the prompt search six, two seeds. Alignment: change against the model as it came. Evaluations and "
        "seconds (one core, not all of one machine): what it took to make, once; the guard adds some to every call "
        "that it acts on. Attacks do not know of the guard and of the noise. NeMo, θ ≥ 0.25: each prompt's own "
        "channels are off for that prompt alone.",
        "",
        *table(["mitigation", *next(iter(rows.values()))], [[name, *row.values()] for name, row in rows.items()]),
    ]


if __name__ == "__main__":
    main()
