"""Measure the published numbers again.

    python benchmarks [NAME [--help] [--only TEXT] [--OPTION VALUE]]

Without a name all are measured, each in a process of its own, and docs/results.md is put together.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from harness import run, write_results

# In the order of docs/results.md, which is an order to measure in as well: some read what others wrote.
NAMES = (
    "panel",
    "detectors",
    "picture-tests",
    "regions",
    "words",
    "published-mitigations",
    "panel-pruning",
    "pruning-pilots",
    "panel-attack",
    "panel-mitigations",
    "audit",
    "locality",
    "relearn",
    "prompt-search",
    "nemo",
    "triggers",
    "training-filter",
    "speed",
    "shards",
    "data-scale",
    "data-pictures",
    "statistics",
    "families",
    "memory",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=(*NAMES, "copy-threshold", "page"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.name is None:
        for name in NAMES:
            subprocess.run([sys.executable, *sys.argv[:1], name], check=True)
    elif options.name != "page":
        run(options.name, options.arguments)
    write_results(NAMES)


if __name__ == "__main__":
    main()
