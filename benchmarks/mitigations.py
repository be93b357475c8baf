"""Every mitigation in one table, of what the other measurements wrote: what it leaves, what attacks find, its cost.

    python benchmarks/mitigations.py

Writes docs/results/mitigations.{json,md}. It measures nothing: a cell is empty where nothing was measured.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from common import OUT, show, table, write
from erase import SPECS

from unmemorize.core.results import Interval
from unmemorize.metrics.ranking import share_interval

Row = dict[str, Any]
COLUMNS = (
    "own prompts",
    "DoRI, from the prompt",
    "DoRI, from N(0, I)",
    "adaptive attack",
    "prompt search",
    "alignment",
    "neighbours' alignment",
    "evaluations",
)
CURED = tuple(SPECS)


def read(name: str) -> Row:
    """Another measurement's numbers, empty if it has not been made."""
    path = OUT / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    pruners = ("NeMo, refined", "NeMo, each prompt's own", "Wanda 1%", "Wanda 10%", "Wanda 40%")
    names = ["none", "guard", *pruners, *CURED]
    rows = {name: dict.fromkeys(COLUMNS) for name in names}
    for take in (guarded, pruned, attacked, cured, dear, typed):
        for name, cells in take().items():
            rows[name] |= {key: cell for key, cell in cells.items() if cell is not None}
    rows = {name: cells for name, cells in rows.items() if any(cells.values())}
    write("mitigations", rows, page(rows))


def guarded() -> dict[str, Row]:
    """Of the quick audit: six pictures, a shorter attack."""
    found = {row["name"]: row for row in read("audit").get("mitigations", ())}
    if "guard" not in found:
        return {}
    row = found["guard"]
    rates = {
        "own prompts": _rate([row[f"copy_rate{end}"] for end in ("", "_low", "_high")]),
        "DoRI, from the prompt": _rate([row[f"copy_rate_attacked{end}"] for end in ("", "_low", "_high")]) + " *",
    }
    return {"guard": rates | {"alignment": _change(row["alignment"], found["none"]["alignment"]), "evaluations": "0"}}


def pruned() -> dict[str, Row]:
    """Quality and cost of pruning; copies are the attack's."""
    found = read("pruning")
    names = {f"Wanda {share}": f"Wanda, {share}" for share in ("1%", "10%", "40%")}
    names |= {"NeMo, refined": "NeMo, all, θ ≥ 1", "NeMo, each prompt's own": "NeMo, all, θ ≥ 0.25, not refined"}
    result = {}
    for name, setting in names.items():
        row = found.get("settings", {}).get(setting)
        if row:
            scope = row["own"] if name.endswith("own") else row["together"]
            fit = scope["edit"].get("alignment")
            result[name] = {
                "own prompts": _rate(scope["edit"]["rate"]),
                "alignment": None if fit is None else _change(fit, found["free"]["alignment"]),
                "evaluations": f"{row['evaluations'] * found['options']['memorized']:,.0f}",
            }
    return result


def attacked() -> dict[str, Row]:
    """Twelve pictures before and after fifty updates."""
    result: dict[str, Row] = {}
    for row in read("attack").get("settings", {}).values():
        if row["steps"] == 50:
            curve = row["curve"]["attacked"]
            start = "prompt" if row["init"] == "prompt" else "N(0, I)"
            cells = {f"DoRI, from {'the ' * (start == 'prompt')}{start}": _rate(list(curve[-1]["copies"].values()))}
            if start == "prompt":
                cells["own prompts"] = _rate(list(row["original"]["attacked"].values()))
            result[row["edit"]] = result.get(row["edit"], {}) | cells
    return result


def cured() -> dict[str, Row]:
    """The pictures that were copied before; the others are left out."""
    return {
        name: {
            "own prompts": _rate(row["copy_rate_after"]),
            "DoRI, from the prompt": _rate(row["attacked"]["prompt"]),
            "DoRI, from N(0, I)": _rate(row["attacked"]["random"]),
            "alignment": f"{row['quality']['ordinary']['alignment']['change'][0]:+.1%}",
            "neighbours' alignment": f"{row['quality']['neighbours']['alignment']['change'][0]:+.1%}",
            "evaluations": f"{row['evaluations']:,}",
        }
        for name, row in read("erase").get("settings", {}).items()
    }


def dear() -> dict[str, Row]:
    """The adaptive attack, and DoRI under each prompt's own NeMo edit."""
    result: dict[str, Row] = {}
    for name, groups in read("stronger").get("settings", {}).items():
        model, start, attack = name.split(" | ")
        model = "NeMo, each prompt's own" if model.startswith("NeMo") else model
        if "memorized" in groups and (attack == "adaptive" or (model.startswith("NeMo") and attack == "DoRI")):
            column = "adaptive attack" if attack == "adaptive" else f"DoRI, from {_START[start]}"
            cell = show(share_interval([row["copied"][-1] for row in groups["memorized"]]), 2)
            result[model] = result.get(model, {}) | {column: cell}
    return result


_START = {"prompt": "the prompt", "random": "N(0, I)"}


def typed() -> dict[str, Row]:
    """Pictures that a searched prompt gives, begun with the words nearest to an attack's embedding."""
    result = {}
    for name, rows in read("prompt-search").get("settings", {}).items():
        model, group, start, words = name.split(" | ")
        if (group, start, words) == ("memorized", "nearest words", "all words"):
            hits = share_interval([row["copied"] for row in rows])
            result["NeMo, each prompt's own" if model.startswith("NeMo") else model] = {"prompt search": show(hits, 2)}
    return result


def _rate(values: list[float]) -> str:
    return show(Interval(*values), 2)


def _change(after: float, before: float) -> str:
    return f"{after / before - 1:+.1%}"


def page(rows: dict[str, Row]) -> list[str]:
    """The numbers as a page."""
    cells = [[name, *(row[column] or "–" for column in COLUMNS)] for name, row in rows.items()]
    return [
        "Copy rates with 95% intervals. Pictures and seeds differ between the parts: twelve pictures for pruning, "
        "those that were copied before for fine-tuning, all that the VAE can bring back for the adaptive attack, "
        "six for the prompt search; *: six pictures, an attack of 128 evaluations that knows nothing of the guard. "
        "Alignment: change "
        "against the model as it came. Evaluations: what it took to make, once; the guard adds some to every call that "
        "it acts on. NeMo: each prompt's edit is in place for that prompt alone.",
        "",
        *table(["mitigation", *COLUMNS], cells),
    ]


if __name__ == "__main__":
    main()
