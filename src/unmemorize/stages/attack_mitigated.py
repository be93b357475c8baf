"""The stage that attacks the model as it came and under every mitigation, each time beside the same two controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq

from unmemorize.attack.extraction import Extraction, Trial, extraction, judging_seeds
from unmemorize.core.errors import UserError
from unmemorize.core.groups import ATTACKED, CONTROL, IN_AUDIT, UNSEEN
from unmemorize.core.methods import settings
from unmemorize.core.run import Progress
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.shards import Row, write_rows
from unmemorize.core.specs import AuditSpec, limited
from unmemorize.metrics.budget import rates
from unmemorize.metrics.similarity import References
from unmemorize.stages.attack import attack_of, prepared
from unmemorize.stages.inputs import Inputs, NotRun
from unmemorize.stages.mitigate import LOWERING, Copies, Fitting, copied, mitigations_of
from unmemorize.stages.stage import COPIED, Cost, Stage, Work, in_shards
from unmemorize.stages.verify import reference_name
from unmemorize.study.controls import FEWEST, Subjects, spread, with_controls
from unmemorize.study.extracted import from_rows, to_rows
from unmemorize.verdict.findings import UNMITIGATED

SHARD = 8  # pictures: a killed attack loses no more
MEMORIZED, CONTROLS = IN_AUDIT[ATTACKED], (IN_AUDIT[CONTROL], IN_AUDIT[UNSEEN])


def attacking(inputs: Inputs, run: Path, progress: Progress) -> Work[tuple[str, str, Sequence[int]]]:
    """What each picture gives after so many updates, by mitigation, group and seed: `scores/attack.parquet`.

    `attack_knows_it` says whether the attack met the mitigation: most search the model, and meet what acts on weights.

    Raises:
        NotApplicable: Nothing was copied.
        NotRun: No mitigation was tried, no attack is asked for, or no picture can be its control.
    """
    spec, model = inputs.spec, inputs.model
    if not spec.attack_updates:
        raise NotRun("no attack was asked for: --attack-updates says how long")
    copies, subjects = _subjects(inputs, run)
    if not (run / "scores" / "mitigated.parquet").exists():
        raise NotRun("no mitigation was tried")
    groups = {IN_AUDIT[group]: pictures for group, pictures in subjects.groups.items()}
    tried, subject = mitigations_of(inputs), inputs.subject
    fitting = Fitting(inputs, run, copies.prompts, progress)
    fitted = {}
    fitting_costs = {}
    for name, text in tried.items():
        with model.counted() as cost:
            fitted[name], _ = fitting.fitted(name, text)
        fitting_costs[name] = cost.forward
    attack = prepared(attack_of(spec.attack_method, spec.attack_updates), inputs, subjects)
    trial = Trial(curve_of(spec), "prompt", 1, judging_seeds(spec.pictures))

    def do(shard: Sequence[tuple[str, str, Sequence[int]]]) -> list[Row]:
        ((name, group, rows),) = shard
        applied = fitted[name].applied(subject) if name in fitted else nullcontext(subject)
        with applied as changed, model.counted() as cost:
            extracted, _ = extraction(changed, groups[group][rows], attack, inputs.check.against, trial)
        knows = name not in fitted or fitted[name].acts in attack.meets
        head = {"mitigation": name, "group": group, "attack_knows_it": knows}
        facts = [head | {"id": f"{group}-{i:04d}"} for i in rows]
        table = to_rows(extracted, facts)
        spent = cost.forward
        if group == MEMORIZED and 0 in rows:  # a mitigation's fitting is counted once, with its first pictures
            spent += fitting_costs.get(name, 0)
        return [row | {"spent": spent / len(table)} for row in table]

    return Work("attack", "scores/attack.parquet", _items((UNMITIGATED, *tried), groups), do, size=1)


def _items(names: Sequence[str], groups: Mapping[str, References]) -> list[tuple[str, str, Sequence[int]]]:
    """Mitigation, group and rows of up to `SHARD` pictures: what is attacked together."""
    items: list[tuple[str, str, Sequence[int]]] = []
    for name in names:
        for group, targets in groups.items():
            for start in range(0, len(targets), SHARD):
                items.append((name, group, range(start, min(start + SHARD, len(targets)))))
    return items


def curve_of(spec: AuditSpec) -> tuple[int, ...]:
    """Numbers of updates after which pictures are made."""
    return tuple(sorted({0, -(-spec.attack_updates // 4), spec.attack_updates}))


def _subjects(inputs: Inputs, run: Path) -> tuple[Copies, Subjects]:
    """What was copied, and the copied pictures with their controls."""
    copies, bundle = copied(inputs, run), inputs.bundle
    controls = inputs.references[[]] if bundle.own is None else bundle.controls(inputs.model.image_size)
    if not len(controls):
        controls = _not_copied(run, inputs.references)
    if not len(controls):
        raise NotRun("an attack needs controls: put captions beside training pictures that are not copied")
    try:
        # More than are needed: those that the VAE does not give back recognisably are left out.
        count = 4 * max(len(copies.pictures), FEWEST)
        return copies, with_controls(inputs.model, inputs.check, copies.pictures, spread(controls, count))
    except UserError as error:
        raise NotRun(str(error)) from error


def _not_copied(run: Path, references: References) -> References:
    """Training pictures with a caption that no generated picture copies."""
    rows = pq.read_table(run / "scores" / "verify.parquet").to_pylist()
    copied = {row["nearest"] for row in rows if row["verdict"] != "none"}
    left = []
    for i, name in enumerate(references.names):
        if references.captions[i] and reference_name(name) not in copied:
            left.append(i)
    return references[left]


def _cost(inputs: Inputs) -> Cost:
    """What it costs if a third of the generated prompts give copies."""
    spec, tried = inputs.spec, mitigations_of(inputs)
    if not tried or not spec.attack_updates or not inputs.bundle.has("references"):
        return Cost()
    pictures = limited(spec.attack, max(limited(spec.generate, len(inputs.prompts)) // COPIED, 1))
    attacks = (1 + len(tried)) * (pictures + len(CONTROLS) * max(pictures, FEWEST))
    calls = sampling_evaluations(inputs.model, inputs.subject.sampler)
    rows = int(settings(attack_of(spec.attack_method, spec.attack_updates)).get("batch", 1))
    judged = attacks * len(curve_of(spec)) * spec.pictures
    gradients = attacks * spec.attack_updates * rows
    if "guard" in tried:
        gradients += judged // (1 + len(tried)) * LOWERING
    return Cost(gradients + judged * calls, gradients=gradients, pictures=judged)


ATTACK = Stage("attack", "attack", in_shards(attacking), _cost)


def write_outcomes(run: Path) -> None:
    """Join what mitigations and attacks did: `scores/mitigations.parquet` and, of attacks, `attack_curve.parquet`."""
    if not (run / "scores" / "mitigated.parquet").exists():
        return
    rows = pq.read_table(run / "scores" / "mitigated.parquet").to_pylist()
    path = run / "scores" / "attack.parquet"
    if path.exists():
        attacked = pq.read_table(path).to_pylist()
        extractions = {}
        for mitigated in rows:
            name = mitigated["name"]
            extractions[name] = _by_group([row for row in attacked if row["mitigation"] == name])
        knows = {row["mitigation"]: row["attack_knows_it"] for row in attacked}
        rows = [row | _after_attack(extractions[row["name"]], knows[row["name"]]) for row in rows]
        points = []
        for name, groups in extractions.items():
            points += _curve(name, groups)
        _write(run, "attack_curve", points)
    _write(run, "mitigations", rows)


def _by_group(rows: Sequence[Row]) -> dict[str, Extraction]:
    return {group: from_rows([r for r in rows if r["group"] == group]) for group in (MEMORIZED, *CONTROLS)}


def _after_attack(groups: Mapping[str, Extraction], knows_it: bool) -> Row:
    """The last copy rates, of memorized pictures and of the harder control, and in how many pictures copies are."""
    control = max(CONTROLS, key=lambda group: _share(groups[group]))
    counts = {
        "attack_knows_it": knows_it,
        "pictures_copied_attacked": _copied(groups[MEMORIZED]),
        "control": control,
        "control_pictures": len(groups[control].names),
        "control_pictures_copied": _copied(groups[control]),
    }
    intervals: Row = {}
    for name, group in (("copy_rate_attacked", MEMORIZED), ("control_rate", control)):
        last = rates(groups[group].copied)[-1]
        intervals |= {name: last.value, f"{name}_low": last.low, f"{name}_high": last.high}
    return counts | intervals


def _copied(group: Extraction) -> int:
    """Pictures with a copy at any seed after the last update."""
    return int(group.copied[:, :, -1].any(axis=(1, 2)).sum())


def _share(group: Extraction) -> tuple[float, float]:
    """How hard a control is: the share of its pictures with a copy, then that of all its generated pictures."""
    return _copied(group) / len(group.names), float(group.copied[:, :, -1].mean())


def _curve(name: str, groups: Mapping[str, Extraction]) -> list[Row]:
    points = []
    for group, extracted in groups.items():
        for s, rate in enumerate(rates(extracted.copied)):
            point: Row = {"mitigation": name, "group": group, "steps": extracted.steps[s], "copy_rate": rate.value}
            point |= {"low": rate.low, "high": rate.high, "ratio": float(extracted.values[:, :, s].mean())}
            points.append(point)
    return points


def _write(run: Path, name: str, rows: Sequence[Row]) -> None:
    write_rows(run / "scores" / f"{name}.parquet", rows)
