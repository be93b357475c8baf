"""The quick audit of the testbed as users run it: what it finds, and how long it takes.

The run in runs/audit-results is made anew, on whatever else the machine does.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from harness import Options, Row, Study, show, table

from unmemorize.audit import AuditSpec, run_audit

RUN = Path("runs/audit-results")


def measure(options: Options) -> Row:
    """The audit's findings, mitigations and times."""
    shutil.rmtree(RUN, ignore_errors=True)
    since, spent = time.perf_counter(), time.process_time()
    summary = run_audit(AuditSpec(), RUN, lambda stage, done, total: print(stage, done, total, flush=True))
    findings: dict[str, list[str]] = {}
    for finding in summary["findings"]:
        findings.setdefault(finding["state"], []).append(finding["code"])
    return {
        "seconds": time.perf_counter() - since,
        "cpu": time.process_time() - spent,
        "cores": os.cpu_count(),
        "stages": json.loads((RUN / "timing.json").read_text(encoding="utf-8"))["seconds"],
        "prompts": summary["prompts"],
        "images": summary["images"],
        "verdict": summary["verdict"],
        "findings": findings,
        "mitigations": pq.read_table(RUN / "scores" / "mitigations.parquet").to_pylist(),
    }


def page(found: Row) -> Iterator[str]:
    """Times, findings and mitigations."""
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in found["stages"].items())
    yield (
        f"{found['prompts']} prompts and {found['images']} pictures in {found['seconds']:.0f} s on {found['cores']} "
        f"cores, the report included; {found['cpu']:.0f} s of processor time. By stage: {stages}."
    )
    states = "; ".join(f"*{state}*: {', '.join(codes)}" for state, codes in found["findings"].items())
    yield from ("", f"Findings: {states}.", "")
    rows = []
    for row in found["mitigations"]:
        rates = []
        for name in ("copy_rate", "copy_rate_attacked", "control_rate"):
            rates.append(show([row[name], row[f"{name}_low"], row[f"{name}_high"]]))
        if not row["attack_knows_it"]:
            rates[1] = f"not attacked by one that knows it ({rates[1]} by one that does not)"
        rows.append([row["name"], *rates, f"{row['quality']:.2f}", f"{row['alignment']:.2f}", str(row["evaluations"])])
    head = "mitigation | copies, own prompts | after attack | harder control | quality | alignment | evaluations"
    yield from table(head, rows)


STUDY = Study(
    title="The quick audit",
    about="`unmemorize audit testbed`, which is branch C of the panel, every stage, as it comes.",
    page=page,
    measure=measure,
)
