"""Mitigations that train, on one reporting branch of each family: what is left, what an attack finds, what it costs.

Each is a run of `unmemorize mitigate` in runs/panel, which continues where it was killed, with the method's own
settings: they were chosen on a model of another training. The alignment of memorized prompts is compared with that of
the same prompts in the branch that never saw their pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from branches import forget_retrained, name_of, other_of, pictures, places_of, references, subject_of
from cases.panel_pruning import memorized
from cases.published_mitigations import share_lost
from common import are_copies, match_closest
from harness import Cases, Options, Row, Study, numbers_of, show, table
from tqdm import tqdm

from unmemorize.core.records import Interval
from unmemorize.core.specs import MitigateSpec
from unmemorize.metrics.ranking import share_interval
from unmemorize.stages.mitigations import tuned_model
from unmemorize.stages.unlearn import mitigate
from unmemorize.testbed.alignment import Alignment

SEED = 600
NONE = "none"
UNLEARNERS = {
    "erase": "erase",
    "adversarial fine-tuning": "adversarial-finetune:check_every=0,updates=48",
    "fine-tuning, no adversary": "finetune",
    "SISS": "siss",
}
BRANCHES = {"C": tuple(UNLEARNERS), "flow C": ("fine-tuning, no adversary", "SISS")}


def folder(branch: str, name: str) -> Path:
    """Where the run and the model of an unlearner are."""
    return Path("runs/panel") / f"{branch} {name}".replace(",", "").replace(" ", "-").lower()


def unlearned(branch: str, name: str, rows: Row) -> Row:
    """What a run of an unlearner measured, and `left` by its model; the run is made or continued first."""
    place = folder(branch, name)
    results = run_of(MitigateSpec(model=name_of(branch), method=UNLEARNERS[name]), place)
    return left(branch, str(place / "model")) | {"unlearner": UNLEARNERS[name], "run": results}


def run_of(spec: MitigateSpec, folder: Path) -> Row:
    """The numbers of a run in `folder/run`, which is made or continued first; its model goes to `folder/model`."""
    results = folder / "run" / "results.json"
    if not results.exists():
        with tqdm(desc=folder.name) as bar:
            show_progress = lambda stage, done, total: bar.set_postfix_str(f"{stage} {done}/{total}")  # noqa: E731
            mitigate(spec, folder / "model", folder / "run", show_progress)
    row: Row = json.loads(results.read_text(encoding="utf-8"))
    return row


def left(branch: str, tuned: str | None) -> Row:
    """By memorized picture, whether it comes back, its alignment, and that of the branch that never saw it."""
    subject, other = subject_of(branch), subject_of(other_of(branch))
    align = Alignment(subject.model)
    entries = memorized(branch)
    texts = [entry.prompts[0] for entry in entries]
    seeds = [SEED] * len(texts)
    images = pictures(subject, texts, seeds)
    if tuned:
        with tuned_model(tuned, subject.model).applied(subject) as changed:
            images = pictures(changed, texts, seeds)
    return {
        "fingerprint": subject.model.fingerprint,
        "copied": are_copies(match_closest(images, [places_of(entry) for entry in entries], references())),
        "alignment": align(images, texts).tolist(),
        "alignment at dose 0": align(pictures(other, texts, seeds), texts).tolist(),
    }


def cases(options: Options) -> Cases:
    """Both branches as they came, and after each unlearner."""
    named = {}
    for branch, names in BRANCHES.items():
        named[f"{branch} | {NONE}"] = lambda rows, branch=branch: left(branch, None)
        for name in names:
            named[f"{branch} | {name}"] = partial(unlearned, branch, name)
    return Cases({"seed": SEED}, named, forget_retrained)


def lost(row: Row) -> Interval:
    """The loss of alignment against dose 0, a share; resampled by picture."""
    return share_lost(row["alignment"], row["alignment at dose 0"])


def page(results: Row) -> Iterator[str]:
    """A row an unlearner: copies, after attacks, alignment, and what the run says of ordinary prompts."""
    lines = []
    for key, row in results["settings"].items():
        branch, _, name = key.partition(" | ")
        copied = np.array(row["copied"], dtype=int)[:, None]
        cells = [branch, name, show(numbers_of(share_interval(copied))), show(numbers_of(lost(row)), "+.1%")]
        if "run" in row:
            attacked = row["run"]["attacked"]
            cells += [show(attacked["prompt"]), show(attacked["random"]), *changes(row["run"])]
        else:
            cells += ["–"] * 7
        lines.append(cells)
    head = "branch | mitigation | copies | alignment lost | DoRI, from the prompt | DoRI, from N(0, I) | alignment"
    yield from table(f"{head} | neighbours' alignment | FID | evaluations | seconds", lines)


def changes(run: Row) -> list[str]:
    """What an unlearner changed in ordinary pictures and what it cost."""
    groups = [run["quality"][group] for group in ("ordinary", "neighbours")]
    fid = groups[0]["fid"]
    shown = [show(group["alignment"]["change"], "+.1%") for group in groups]
    return [*shown, f"{fid['before'][0]:.3f} → {fid['after'][0]:.3f}", f"{run['evaluations']:,}", f"{run['seconds']:,}"]


STUDY = Study(
    title="Mitigations that train, on the panel",
    about="*Copies* and *alignment lost*: 24 pictures that were planted a hundred times in the branch and never in the "
    "other one, one seed; alignment against the same prompts in the other branch. *DoRI*: 50 updates, of all pictures "
    "that the branch copies for their captions, four seeds that no training saw. *Alignment*: its change on ordinary "
    "captions that no training saw, and on the quarter of them nearest to memorized ones. Settings are the methods' "
    "own; nothing was chosen here.",
    page=page,
    measure=cases,
)
