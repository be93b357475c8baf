"""How a measurement runs: its cases are measured, their rows kept as JSON, and a page is made of them.

A measurement is a file in `cases/` with a `STUDY`, and its text is the help. `docs/results/NAME.json` has what was
measured, `NAME.md` the page, and docs/results.md all pages. A case's name is its key: one that is kept already, under
the same conditions, is not measured again, so that a killed measurement goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

from unmemorize.core.records import Interval
from unmemorize.core.run import atomic

OUT = Path("docs/results")
PAGE = Path("docs/results.md")
Row = dict[str, Any]
Options = argparse.Namespace
Limits = Interval | Mapping[str, float] | Sequence[float]  # a value with its interval, as it is or as JSON has it

HEAD = """# Results

Everything here was measured on the shipped models by `make results`; this page is put together from the parts that it
writes in `docs/results/`. A to D are the branches of the panel, `testbed-a` to `testbed-d`, of which `testbed` is C;
flow C and flow D are the transformer's.

Intervals are 95%. Those of rates are exact (Clopper and Pearson) over pictures or prompts, or over families where
prompts are related; areas under curves and changes of quality are bootstrapped over clusters of related prompts. Small
models show signs and orders of effects; their values do not carry over to large ones.
"""


@dataclass(frozen=True)
class Cases:
    """What is measured case by case.

    Attributes:
        same: What has to be the same for kept rows to count; it stands beside them.
        measure: How each case is measured, by name; it is given the rows of the cases before.
        refresh: Drops kept rows of what has changed since.
    """

    same: Row
    measure: Mapping[str, Callable[[Row], Any]]
    refresh: Callable[[Row], None] = lambda results: None


@dataclass(frozen=True)
class Study:
    """A measurement.

    Attributes:
        title: The heading of its page.
        about: What stands below the heading.
        page: The lines of the page, of all numbers.
        measure: All numbers, or the cases that give them as `settings`.
        options: Options of the command line, with what they are where nothing is asked for.
        figures: Draws all numbers.
        path: Where the page goes, by default docs/results/NAME.md.
    """

    title: str
    about: str
    page: Callable[[Any], Iterable[str]]
    measure: Callable[[Options], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    figures: Callable[[Any], None] = lambda numbers: None
    path: Path | None = None


def module_of(name: str) -> ModuleType:
    """The file of a measurement."""
    return import_module(f"cases.{name.replace('-', '_')}")


def run(name: str, arguments: Sequence[str]) -> None:
    """Measure what is missing, write it and its page, and draw it."""
    module = module_of(name)
    study: Study = module.STUDY
    parser = argparse.ArgumentParser(
        prog=f"benchmarks {name}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="measure cases whose name contains this; the page shows all kept")
    parser.add_argument("--again", action="store_true", help="measure those that are kept, too")
    for option, default in study.options.items():
        if default is False:
            parser.add_argument(f"--{option}", action="store_true")
        else:
            parser.add_argument(f"--{option}", type=type(default), default=default, help=f"by default {default}")
    options = parser.parse_args(arguments)
    numbers = study.measure(options)
    if isinstance(numbers, Cases):
        numbers = _each(name, study, numbers, options)
    print(write(name, study, numbers))
    study.figures(numbers)


def _each(name: str, study: Study, cases: Cases, options: Options) -> Row:
    """The kept rows, and those of the cases that are not kept yet."""
    results = kept(name, cases.same)
    cases.refresh(results)
    for key, measure in cases.measure.items():
        if options.only in key and (options.again or key not in results["settings"]):
            since = time.monotonic()
            row = measure(results["settings"])
            seconds = round(time.monotonic() - since)
            results = kept(name, cases.same)  # another process may have added its own
            cases.refresh(results)
            results["settings"][key] = row
            results.setdefault("seconds", {})[key] = seconds
            write(name, study, results)
    return results


def kept(name: str, same: Row) -> Row:
    """What docs/results/NAME.json holds, if it was measured under the same conditions; else these and no settings."""
    path = OUT / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return before if all(before.get(key) == value for key, value in same.items()) else same | {"settings": {}}


def read(name: str) -> Any:
    """The numbers of a measurement that was made before."""
    return json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, study: Study, numbers: Any) -> str:
    """Write docs/results/NAME.json, where there are numbers, and the page, which is returned."""
    page = "\n".join(study.page(numbers)) + "\n"
    texts = {study.path or OUT / f"{name}.md": page}
    if numbers is not None:
        texts[OUT / f"{name}.json"] = json.dumps(numbers, indent=1, ensure_ascii=False) + "\n"
    for path, text in texts.items():
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return page


def write_results(names: Iterable[str]) -> None:
    """Put the pages together as docs/results.md."""
    parts = [HEAD]
    for name in names:
        study, path = module_of(name).STUDY, OUT / f"{name}.md"
        if study.title and path.exists():
            parts.append(f"## {study.title}\n\n{study.about}{took(name)}\n\n{path.read_text(encoding='utf-8')}")
    with atomic(PAGE) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


def took(name: str) -> str:
    """How long the kept cases of a measurement took, as far as it is known."""
    path = OUT / f"{name}.json"
    numbers = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if not isinstance(numbers, dict) or not {"settings", "seconds"} <= numbers.keys():
        return ""
    cases, seconds = numbers["settings"], numbers["seconds"]
    known = [seconds[key] for key in cases if key in seconds]
    of = "" if len(known) == len(cases) else f" for {len(known)} of {len(cases)} cases"
    return f" Measuring took {sum(known) / 3600:.1f} hours of one core{of}."


def table(columns: str | Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown; columns may be one text, parted by " | "."""
    head = columns.split(" | ") if isinstance(columns, str) else columns
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def numbers_of(interval: Limits) -> list[float]:
    """A value, and the limits of its interval."""
    if isinstance(interval, Interval):
        return list(astuple(interval))
    if isinstance(interval, Mapping):
        return [interval["value"], interval["low"], interval["high"]]
    return list(interval)


def show(interval: Limits | None, form: str = ".2f") -> str:
    """A value with its interval; a dash where nothing was measured."""
    if interval is None:
        return "–"
    value, low, high = (f"{number:{form}}" for number in numbers_of(interval))
    return f"{value} [{low}, {high}]"


def save_figure(figure: Figure, name: str) -> None:
    """Write docs/results/NAME, an SVG or PNG file without a date."""
    kind = name.rsplit(".", 1)[1]
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with atomic(OUT / name) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata, dpi=120)
