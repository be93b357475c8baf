"""A command's work with workers: `python commands.py COMMAND INPUTS RUN WORKERS LAUNCHER [kill]` does it.

The first process leaves all shards of each stage to the workers until one of them has done one; with `kill` it then
kills one of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from unmemorize.core.crew import Crew
from unmemorize.core.run import quiet
from unmemorize.core.specs import AttackSpec, AuditSpec, DataSpec, DetectSpec, GenerateSpec, TriggerSpec
from unmemorize.launch import launched

PATIENCE = 120  # seconds, after which the first process works itself
COMMANDS = ("detect", "attack", "triggers", "data", "generate", "audit")


def work(command, inputs, run, crew):
    model, references = str(inputs / "model"), str(inputs / "references")
    prompts = str(inputs / "prompts.txt")
    small = {"model": model, "steps": 2, "pictures": 1}
    if command == "detect":
        from unmemorize.stages.detect import detect

        spec = DetectSpec(model=model, steps=2, prompts=str(inputs / "many.txt"), seeds=1)
        detect(spec, run, quiet, crew)
    elif command == "attack":
        from unmemorize.stages.attack import run_attack

        spec = AttackSpec(
            **small, targets=str(inputs / "targets"), controls=references, method="dori:batch=2", updates=1, restarts=1
        )
        run_attack(spec, run, quiet, crew)
    elif command == "triggers":
        from unmemorize.stages.triggers import probe

        probe(TriggerSpec(**small, prompts=prompts, references=references, limit=3, repeats=1), run, quiet, crew)
    elif command == "data":
        from unmemorize.data import candidates
        from unmemorize.stages.data import audit_data

        candidates.MANY = 10  # so that it takes cells; the search tells the workers
        audit_data(DataSpec(source=str(inputs / "set.parquet")), run, quiet, crew)
    elif command == "generate":
        from unmemorize.stages.generate import generate

        generate(GenerateSpec(model=model, prompt="an owl on a fence", steps=2, pictures=40), run, quiet, crew)
    else:
        from unmemorize.audit import run_audit

        spec = AuditSpec(
            **small,
            prompts=prompts,
            references=references,
            ordinary=str(inputs / "ordinary.txt"),
            seeds=1,
            explain=6,
            attack=2,
            attack_updates=1,
            mitigation=("random-words",),
        )
        run_audit(spec, run, quiet, crew=crew)


def shards(run):
    """How many are done; of generated pictures, whose shards and folder are temporary, how many of these."""
    return len([*run.glob("shards/*/*.parquet"), *run.parent.glob(f".{run.name}.*/*.png")])


def main(command, inputs, run, count, launcher, kill=""):
    run, killed = Path(run), []
    with launched(launcher, int(count)) as call:

        def called(task):
            idle, before, since = call(task), shards(run), time.monotonic()

            def left_to_workers():
                if int(count) > 1 and shards(run) == before and time.monotonic() - since < PATIENCE:
                    return True
                if kill and not killed:
                    killed.append(multiprocessing.active_children()[0].pid)
                    os.kill(killed[0], signal.SIGKILL)
                return idle() and not kill

            return left_to_workers

        work(command, Path(inputs), run, Crew(call=called))
    if kill:
        assert killed


if __name__ == "__main__":
    main(*sys.argv[1:])
