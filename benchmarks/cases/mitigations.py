"""Every mitigation in one table: what it leaves of the copies, what attacks find, what it changes and what it costs.

The same pictures, seeds, attack and measures of quality for all. Those that train are runs of `unmemorize mitigate` in
runs/erase, which continue where they were killed; `torchrun --nproc_per_node 2 benchmarks mitigations` takes two
processes. What the adaptive attack and the prompt search find is read from what `stronger` and `prompt-search` wrote:
a cell is empty where nothing was measured.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
from common import SAMPLER, often, planted
from harness import OUT, Cases, Options, Row, Study, read, show, table
from mitigated import UNLEARNERS, UNTRAINED, Mitigated, folder, mitigated
from torch import Tensor
from tqdm import tqdm

from unmemorize.attack.dori import Dori
from unmemorize.core.methods import Subject
from unmemorize.core.specs import MitigateSpec
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.similarity import References
from unmemorize.models.load import load
from unmemorize.stages.unlearn import TEST_SEED, measures, mitigate
from unmemorize.study.effects import Judge, Subjects, attacked_from_both, copies_of, measure, quality, rate_of

SPECS = {name: MitigateSpec(model="testbed-ladder", method=method, pictures=4) for name, method in UNLEARNERS.items()}
BEFORE = "adaptive, own prompt not from noise"
SEARCHED = "memorized | nearest words | all words"  # the search for a prompt that finds most
LEFT = ("own prompts", "DoRI, from the prompt", "DoRI, from N(0, I)")


@dataclass(frozen=True)
class Bench:
    """What those that train nothing are measured with; `before` is the model as it came, `targets` what it copies."""

    subject: Subject
    subjects: Subjects
    judge: Judge
    before: dict[str, Tensor]
    targets: References

    @classmethod
    def prepare(cls) -> Bench:
        """The same pictures and captions as a run of `unmemorize mitigate` has."""
        subject = Subject(load("testbed-ladder"), SAMPLER)
        subjects, judge, _ = measures(SPECS["erase"], subject.model)
        before = measure(subject, subjects, judge)
        copied = before["copies"].any(dim=1).nonzero()[:, 0].tolist()
        return cls(subject, subjects, judge, before, subjects.memorized[copied])

    def measured(self, name: str, rows: Row) -> Row:
        """A row as `unmemorize mitigate` writes them; without quality if each picture has its own edit."""
        what = mitigated(self.subject, name)
        rates = {key: rate_of(hits) for key, hits in self._left(what).items()}
        return {
            "pictures": len(self.targets),
            "copy_rate_after": rates.pop("after"),
            "attacked": rates,
            "quality": self._quality(what),
            "evaluations": what.evaluations,
            "seconds": round(what.seconds),
        }

    def _left(self, what: Mitigated) -> dict[str, Tensor]:
        """Copies for the prompts and after attacks, (pictures, seeds) each."""
        count, found = len(self.targets), []
        each = count if what.is_one else 1
        for i in range(0, count, each):
            part = self.targets[list(range(i, i + each))]
            prompts = part.prompts
            with what.of(prompts[0], i).applied(self.subject) as subject:
                own = copies_of(subject, subject.model.encode(prompts), part, self.judge)
                attacked = attacked_from_both(subject, part, self.judge, seed=TEST_SEED + i, attack=Dori())
            found.append({"after": own} | attacked)
        return {name: torch.cat([rows[name] for rows in found]) for name in found[0]}

    def _quality(self, what: Mitigated) -> Row | None:
        if not what.is_one:
            return None
        with what.of(None, 0).applied(self.subject) as subject:
            after = measure(subject, self.subjects, self.judge)
        return quality(self.before, after, self.subjects, self.judge)


def trained(name: str, rows: Row) -> Row:
    """The numbers of an unlearner's run."""
    return {"unlearner": UNLEARNERS[name]} | run_of(SPECS[name], folder(name))


def run_of(spec: MitigateSpec, folder: Path) -> Row:
    """The numbers of a run in `folder/run`, which is made or continued first; its model goes to `folder/model`."""
    results = folder / "run" / "results.json"
    if not results.exists():
        with tqdm(desc=folder.name) as bar:
            show_progress = lambda stage, done, total: bar.set_postfix_str(f"{stage} {done}/{total}")  # noqa: E731
            mitigate(spec, folder / "model", folder / "run", show_progress)
    row: Row = json.loads(results.read_text(encoding="utf-8"))
    return row


def forget_changed(results: Row) -> None:
    """Drop the rows of unlearners that had other settings."""
    for name, method in UNLEARNERS.items():
        if results["settings"].get(name, {}).get("unlearner") != method:
            results["settings"].pop(name, None)


def cases(options: Options) -> Cases:
    """Every mitigation; what those without training share is measured if one of them is asked for."""
    benches: list[Bench] = []

    def untrained(name: str, rows: Row) -> Row:
        if not benches:
            benches.append(Bench.prepare())
        return benches[0].measured(name, rows)

    named = {name: partial(untrained, name) for name in UNTRAINED} | {name: partial(trained, name) for name in SPECS}
    return Cases({"fingerprint": load("testbed-ladder").fingerprint}, named, forget_changed)


def page(results: Row) -> Iterator[str]:
    """One row a mitigation, and what differs between training seeds of erase."""
    settings = results["settings"]
    yield (
        "Copy rates with 95% intervals. The pictures are those that the model copied before, four seeds each; for "
        "the adaptive attack some or all that the VAE can bring back, two seeds, and its control pictures that were "
        "trained on once, in brackets how many; for the prompt search six, two seeds. DoRI: 50 updates of batch 8, "
        "with seeds and starts that no training saw. Alignment: change against the model as it came, on ordinary "
        "captions that no training saw, and on the quarter of them nearest to memorized ones. Evaluations and seconds "
        "(one core, not all of one machine): what it took to make, once, and of fine-tuning the updates alone; the "
        "guard adds some to every call that it acts on. Attacks do not know of the guard and of the noise. NeMo, "
        "θ ≥ 0.25: each prompt's own channels are off for that prompt alone; refined: all prompts' together."
    )
    if "none" in settings:
        yield from ("", selection(settings["none"]))
    yield ""
    yield (
        "The settings of erase were chosen over some twenty versions on these pictures, with other seeds and "
        "captions; the guard's target, Wanda's 40% and the noise's strength by what they left of these prompts. "
        "Every other method has one setting, which was not adjusted: the comparison favours erase."
    )
    yield ""
    yield (
        "*: the attack as it was before 2026-11-26, which did not search the picture's own prompt from noise. Rows of "
        "fine-tuned models, which are not shipped, were not measured again."
    )
    stronger, typed = kept_rows("stronger"), kept_rows("prompt-search")
    rows = []
    for name, row in settings.items():
        searched = [found["copied"] for found in typed.get(f"{name} | {SEARCHED}", ())]
        dear = [attacked(stronger, name, group) for group in ("memorized", "trained on once")]
        left = (row["copy_rate_after"], row["attacked"]["prompt"], row["attacked"]["random"])
        rows.append([name, *map(show, left), *dear, rate(searched), *changes(row)])
    head = " | ".join(("mitigation", *LEFT, "adaptive attack | its control | prompt search | alignment"))
    yield from ("", *table(f"{head} | neighbours' alignment | FID | evaluations | seconds", rows))
    yield from spread([row for name, row in settings.items() if name.startswith("erase")])


def kept_rows(name: str) -> Row:
    """Another measurement's rows, none if it has not been made."""
    return read(name)["settings"] if (OUT / f"{name}.json").exists() else {}


def attacked(stronger: Row, name: str, group: str) -> str:
    """The rate of the attack as it is now, else, with an asterisk, as it was before; and the number of pictures."""
    for attack, mark in (("adaptive", ""), (BEFORE, "*")):
        prefix = f"{name} | mixed | {attack} | {group} | "
        hits = [row["copied"][-1] for key, row in stronger.items() if key.startswith(prefix)]
        if hits:
            return f"{rate(hits)} ({len(hits)}){mark}"
    return "–"


def rate(hits: Sequence[list[bool]]) -> str:
    """The share of copies with its interval over pictures, or a dash."""
    return show(share_interval(hits) if hits else None)


def changes(row: Row) -> list[str]:
    """What a mitigation changed and what it cost; a dash where nothing was measured."""
    shown = ["–", "–", "–"]
    if row["quality"]:
        groups = [row["quality"][group] for group in ("ordinary", "neighbours")]
        fid = groups[0]["fid"]
        shown = [show(group["alignment"]["change"], "+.1%") for group in groups]
        shown.append(f"{fid['before'][0]:.3f} → {fid['after'][0]:.3f}")
    return [*shown, f"{row['evaluations']:,}", f"{row['seconds']:,}"]


def selection(row: Row) -> str:
    """How the first column's pictures were chosen, and the rate of all of them."""
    all_of_them = len(planted(often))
    unselected = row["copy_rate_after"][0] * row["pictures"] / all_of_them
    groups = {group["group"]: group["planted"][0] for group in read("testbed")["groups"]}
    fresh = groups["**verbatim, 100 copies or more**"]
    return (
        f"The {row['pictures']} pictures of own prompts and DoRI are those of {all_of_them} that the model copied at "
        "one of the same four seeds, which raises the rate without a mitigation: over all of them it is "
        f"{unselected:.2f}, and at other seeds {fresh:.2f}."
    )


def spread(runs: Sequence[Row]) -> Iterator[str]:
    """What differs between training seeds."""
    if len(runs) < 2:
        return
    values = {
        "own prompts": [row["copy_rate_after"][0] for row in runs],
        "attacked, from the prompt": [row["attacked"]["prompt"][0] for row in runs],
        "attacked, from N(0, I)": [row["attacked"]["random"][0] for row in runs],
    }
    for group in ("ordinary", "neighbours"):
        moved = [row["quality"][group]["alignment"]["change"][0] for row in runs]
        values[f"alignment, {group} (change in %)"] = [100 * change for change in moved]
    rows = [[name, *(f"{of(v):.2f}" for of in (mean, stdev, min, max))] for name, v in values.items()]
    head = f"erase, {len(runs)} training seeds | mean | standard deviation | least | most"
    yield from ("", *table(head, rows))


STUDY = Study(
    title="All mitigations",
    about="Fine-tuning, pruning and what acts at inference, attacked afterwards. Every method has the same pictures, "
    "attack and measures of quality.",
    page=page,
    measure=cases,
)
