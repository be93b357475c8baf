"""Mitigations that train nothing, measured as those that do: the same pictures, seeds, attacks and quality.

    python benchmarks/untrained.py [--only NAME]

Writes docs/results/untrained.{json,md}. A mitigation that is in the JSON already, for the same model, is not measured
again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from common import SAMPLER, Row, kept, write
from erase import SPECS, summary
from mitigated import UNTRAINED, Mitigated, mitigated
from torch import Tensor

from unmemorize.attack.dori import Dori
from unmemorize.core.methods import Subject
from unmemorize.jobs.cured import Judge, Subjects, attacked_from_both, copies_of, measure, quality, rate_of
from unmemorize.jobs.mitigate import TEST_SEED, measures
from unmemorize.jobs.pairs import captions_of
from unmemorize.metrics.similarity import References
from unmemorize.models.load import load


@dataclass(frozen=True)
class Bench:
    """What every mitigation is measured with; `before` is the model as it came, `targets` what it copies."""

    subject: Subject
    subjects: Subjects
    judge: Judge
    before: dict[str, Tensor]
    targets: References

    def measured(self, what: Mitigated) -> Row:
        """A row as benchmarks/erase.py writes them; without quality if each picture has its own edit."""
        rates = {name: rate_of(hits) for name, hits in self._left(what).items()}
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
            prompts = captions_of(part)
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


def prepare(subject: Subject) -> Bench:
    """The same pictures and captions as a run of `unmemorize mitigate` has."""
    subjects, judge, _ = measures(SPECS["erase"], subject.model)
    before = measure(subject, subjects, judge)
    copied = before["copies"].any(dim=1).nonzero()[:, 0].tolist()
    return Bench(subject, subjects, judge, before, subjects.memorized[copied])


def page(found: dict[str, Row]) -> list[str]:
    """The numbers as a page."""
    pictures = next(iter(found.values()))["pictures"]
    about = (
        f"{pictures} pictures, four seeds each, as for fine-tuning. The guard and the noise act on what is sampled; "
        "the attack does not know them. NeMo, θ ≥ 0.25: each prompt's own channels are off for that prompt alone, so "
        "that others stay as they are; refined: all prompts' together."
    )
    return [about, "", *summary(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure mitigations whose name contains this")
    options = parser.parse_args()
    subject = Subject(load("testbed"), SAMPLER)
    results = kept("untrained", {"fingerprint": subject.model.fingerprint})
    bench = prepare(subject)
    prompts = captions_of(bench.subjects.memorized)
    for name in UNTRAINED:
        if options.only in name and name not in results["settings"]:
            results["settings"][name] = bench.measured(mitigated(subject, name, prompts))
            write("untrained", results, page(results["settings"]))


if __name__ == "__main__":
    main()
