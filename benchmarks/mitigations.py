"""Every mitigation in one table, of what the other measurements wrote: what it leaves, what attacks find, its cost.

    python benchmarks/mitigations.py

Writes docs/results/mitigations.{json,md}. It measures nothing: a cell is empty where nothing was measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from common import OUT, Row, often, planted, show, table, write
from erase import cells

from unmemorize.metrics.ranking import share_interval

BEFORE = "adaptive, own prompt not from noise"
SEARCHED = "memorized | nearest words | all words"  # the search for a prompt that finds most


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = read("untrained") | read("erase")
    adaptive = by_mitigation(read("stronger"))
    typed = {name.split(" | ")[0]: rows for name, rows in read("prompt-search").items() if name.endswith(SEARCHED)}
    rows = {}
    for name, row in found.items():
        dear = {
            "adaptive attack": attacked(adaptive.get(name, {}), "memorized"),
            "its control": attacked(adaptive.get(name, {}), "trained on once"),
            "prompt search": rate([p["copied"] for p in typed.get(name, ())]),
        }
        shown = cells(row)
        left = {column: shown.pop(column) for column in ("own prompts", "DoRI, from the prompt", "DoRI, from N(0, I)")}
        rows[name] = left | dear | shown
    write("mitigations", rows, page(rows, selection(found["none"])))


def read(name: str) -> Row:
    """Another measurement's settings, empty if it has not been made."""
    path = OUT / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["settings"] if path.exists() else {}


def by_mitigation(settings: Row) -> dict[str, Row]:
    """What the adaptive attack found by mitigation, as it is now and as it was before: rows by group."""
    found: dict[str, Row] = {}
    for name, groups in settings.items():
        mitigation, _, attack = name.split(" | ")
        if attack in ("adaptive", BEFORE):
            found.setdefault(mitigation, {})[attack] = groups
    return found


def attacked(found: Row, group: str) -> str:
    """The rate of the attack as it is now, else, with an asterisk, as it was before; and the number of pictures."""
    for attack, mark in (("adaptive", ""), (BEFORE, "*")):
        rows = found.get(attack, {}).get(group, [])
        if rows:
            return f"{rate([row['copied'][-1] for row in rows])} ({len(rows)}){mark}"
    return "–"


def selection(row: Row) -> str:
    """How the first column's pictures were chosen, and the rate of all of them."""
    all_of_them = len(planted(often))
    unselected = row["copy_rate_after"][0] * row["pictures"] / all_of_them
    groups = json.loads((OUT / "testbed.json").read_text(encoding="utf-8"))
    (fresh,) = [group["planted"][0] for group in groups if group["group"] == "**verbatim, 100 copies or more**"]
    return (
        f"The {row['pictures']} pictures of own prompts and DoRI are those of {all_of_them} that the model copied at "
        "one of the same four seeds, which raises the rate without a mitigation: over all of them it is "
        f"{unselected:.2f}, and at other seeds {fresh:.2f}."
    )


def rate(hits: Sequence[list[bool]]) -> str:
    """The share of copies with its interval over pictures, or a dash."""
    return show(share_interval(hits), 2) if hits else "–"


def page(rows: dict[str, dict[str, str]], selected: str) -> list[str]:
    """The numbers as a page."""
    return [
        "Copy rates with 95% intervals. The pictures are those that the model copied before, four seeds each; for "
        "the adaptive attack some or all that the VAE can bring back, two seeds, and its control pictures that were "
        "trained on once, in brackets how many; for the prompt search six, two seeds. Alignment: change against the "
        "model as it came. Evaluations and seconds (one core, not all of one machine): what it took to make, once; "
        "the guard adds some to every call that it acts on. Attacks do not know of the guard and of the noise. NeMo, "
        "θ ≥ 0.25: each prompt's own channels are off for that prompt alone.",
        "",
        selected,
        "",
        "The settings of erase were chosen over some twenty versions on these pictures, with other seeds and "
        "captions; the guard's target, Wanda's 40% and the noise's strength by what they left of these prompts. "
        "Every other method has one setting, which was not adjusted: the comparison favours erase.",
        "",
        "*: the attack as it was before 2026-11-26, which did not search the picture's own prompt from noise. Rows of "
        "fine-tuned models, which are not shipped, were not measured again.",
        "",
        *table(["mitigation", *next(iter(rows.values()))], [[name, *row.values()] for name, row in rows.items()]),
    ]


if __name__ == "__main__":
    main()
