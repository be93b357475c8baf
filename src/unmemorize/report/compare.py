"""Two runs on one page, prompt by prompt: what a change to the model did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmemorize.core.errors import UserError
from unmemorize.report.build import SIDES, TEMPLATES, Evidence, environment, write_text
from unmemorize.report.pictures import picture_loader
from unmemorize.report.rows import COPIES, Prompt, rank_prompts
from unmemorize.report.schema import Interval, Run, load_run

SHOWN = 200  # pairs with pictures on the page
ROUNDS = 2000


@dataclass(frozen=True)
class Pair:
    """One prompt in both runs."""

    prompt: str
    a: Prompt
    b: Prompt

    @property
    def score(self) -> float | None:
        """Difference of the scores, B - A."""
        return None if self.a.score is None or self.b.score is None else self.b.score - self.a.score

    @property
    def copies(self) -> float | None:
        """Difference of the shares of pictures that are copies, over seeds that both runs have compared."""
        a, b = _verdicts(self.a), _verdicts(self.b)
        both = a.keys() & b.keys()
        return sum(b[seed] - a[seed] for seed in both) / len(both) if both else None


@dataclass(frozen=True)
class Difference:
    """Mean of B - A over `pairs` prompts, with its 95% bootstrap interval over prompts."""

    name: str
    a: float
    b: float
    change: Interval
    pairs: int


def build_comparison(run_a: Path, run_b: Path, out: Path, *, evidence: Evidence = "full") -> Path:
    """Write the page that compares two runs; returns its path.

    Raises:
        UserError: A run is missing or damaged, or the two have no prompt in common.
    """
    a, b = load_run(run_a), load_run(run_b)
    pairs = pair_prompts(a, b)
    if not pairs:
        raise UserError(f"{run_a} and {run_b} have no prompt in common: compare runs over the same prompts")
    changed = sorted((p for p in pairs if p.a.copied or p.b.copied), key=lambda p: (p.copies or 0.0, p.a.rank))
    page = (
        environment()
        .get_template("compare.html.j2")
        .render(
            a=a,
            b=b,
            pairs=pairs,
            differences=differences(pairs),
            changed=changed[:SHOWN],
            left_out=max(0, len(changed) - SHOWN),
            settings=_settings(a, b),
            shots=lambda run, prompt: _shots(run, prompt, evidence),
            evidence=evidence,
            style=(TEMPLATES / "style.css").read_text("utf-8"),
        )
    )
    return write_text(out, page)


def pair_prompts(a: Run, b: Run) -> list[Pair]:
    """The prompts of both runs with the same text, in the order of the first's ranking."""
    others = {p.prompt: p for p in rank_prompts(b)}
    return [Pair(p.prompt, p, others[p.prompt]) for p in rank_prompts(a) if p.prompt in others]


def differences(pairs: Sequence[Pair]) -> list[Difference]:
    """What changed on average, over the prompts where both runs measured it."""
    measured: list[tuple[str, Callable[[Pair], float | None], Callable[[Prompt], float]]] = [
        ("score", lambda pair: pair.score, lambda prompt: prompt.score or 0.0),
        ("copy rate", lambda pair: pair.copies, _copy_rate),
    ]
    found = []
    for name, change, value in measured:
        kept = [(pair, d) for pair in pairs if (d := change(pair)) is not None]
        if kept:
            ends = (
                float(np.mean([value(side) for side in sides]))
                for sides in zip(*((p.a, p.b) for p, _ in kept), strict=True)
            )
            found.append(Difference(name, *ends, _bootstrap([d for _, d in kept]), len(kept)))
    return found


def _bootstrap(values: Sequence[float]) -> Interval:
    array = np.asarray(values)
    picks = np.random.default_rng(0).integers(len(array), size=(ROUNDS, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [0.025, 0.975])
    return Interval(value=float(array.mean()), low=float(low), high=float(high))


def _copy_rate(prompt: Prompt) -> float:
    verdicts = _verdicts(prompt)
    return sum(verdicts.values()) / len(verdicts) if verdicts else 0.0


def _verdicts(prompt: Prompt) -> dict[int, bool]:
    return {shot.seed: shot.verdict in COPIES for shot in prompt.shots if shot.verdict != "not compared"}


def _settings(a: Run, b: Run) -> list[tuple[str, object, object]]:
    """What the two runs were asked for differently; the model first, though it may be the same."""
    same = [("model", a.record.model.get("name"), b.record.model.get("name"))]
    hashes = [("fingerprint", a.record.model.get("fingerprint"), b.record.model.get("fingerprint"))]
    keys = [key for key in a.record.spec | b.record.spec if key != "model"]
    specs = [(key, a.record.spec.get(key), b.record.spec.get(key)) for key in keys]
    return same + hashes + [row for row in specs if row[1] != row[2]]


def _shots(run: Run, prompt: Prompt, evidence: Evidence):
    """A prompt's pictures as (label, verdict, picture or None); copies as far as `evidence` lets."""
    plain = picture_loader(run.path)
    shown = picture_loader(run.path, SIDES[evidence]) if evidence in SIDES else lambda path: None
    for shot in prompt.shots:
        yield f"seed {shot.seed}", shot.verdict, (shown if shot.verdict in COPIES else plain)(shot.image)
    for group in prompt.groups:
        if group.nearest and group.copied:
            yield "training picture", "", shown(group.nearest)
