"""What pruning does to the shipped testbed: copies left, what it costs ordinary prompts, and two controls.

    python benchmarks/pruning.py [--prompts 18] [--ordinary 24] [--seeds 2] [--only NAME]

A picture counts as a copy where it copies its *own* prompt's training picture; what copies any training picture stands
beside it. The controls are random edits of equal size and like norms, drawn from outside of the edit, and the same
method aimed at as many ordinary prompts; both are measured with the memorized prompts. Writes
docs/results/pruning.{json,md,png}. A setting that is already in the JSON, for the same model and options, is not
measured again. Pictures come from seeds that no search looks at; the unpruned model's are the same for every setting.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from common import OUT, Row, are_copies, kept, match_any, match_own, pictures, planted, show, table, write
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from unmemorize.core.choose import evenly
from unmemorize.core.methods import Localizer, Mitigation, Subject
from unmemorize.core.model import DiffusionModel
from unmemorize.core.results import Interval, Localization
from unmemorize.core.run import atomic, write_json
from unmemorize.core.specs import LocateSpec
from unmemorize.jobs.inputs import bundle_of
from unmemorize.localize.control import aimed_at_ordinary
from unmemorize.localize.nemo import Nemo, Rule
from unmemorize.localize.reference import SEEDS, Reference, Start, cache_folder, cached_reference
from unmemorize.localize.wanda import Wanda
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.ssim import pairwise_ssim, scales_for, ssim
from unmemorize.mitigate.edit import Edit, random_like, removed_norm
from unmemorize.models.load import load
from unmemorize.testbed.alignment import Alignment

RESULTS = OUT / "pruning.json"
FIRST_SEED = 100
DRAWS = 3  # random controls of an edit
LOCALIZERS: dict[str, Localizer] = {
    "Wanda, 1%": Wanda(sparsity=0.01),
    "Wanda, 10%": Wanda(sparsity=0.1),
    "Wanda, 40%": Wanda(sparsity=0.4),
    "Wanda, 50%": Wanda(sparsity=0.5),
    "NeMo, down-mid, θ ≥ 1": Nemo(layers="down-mid"),
    "NeMo, all, θ ≥ 1": Nemo(layers="all"),
    "NeMo, all, θ ≥ 1, not refined": Nemo(layers="all", refine=False),
    "NeMo, all, θ ≥ 0.25, not refined": Nemo(layers="all", minimum=0.25, refine=False),
    "NeMo, all, θ ≥ 0, our rule": Nemo(layers="all", minimum=0.0, rule="ordinary", seeds=5),
}
KINDS = ("verbatim", "repeat", "template", "word")  # in this order, as many prompts as asked for
CANDIDATES = 40  # ordinary prompts of which the first that NeMo's threshold calls memorized are aimed at

Locate = Callable[[Sequence[str]], Localization]


@dataclass(frozen=True)
class Bench:
    """What every setting is measured with; `aimed` are the ordinary prompts of the control."""

    model: DiffusionModel
    hashed: str
    memorized: list[str]
    ordinary: list[str]
    aimed: list[str]
    usual: Reference
    seeds: tuple[int, ...]
    align: Alignment

    def pictures(self, prompts: Sequence[str], edits: Sequence[Mitigation] = ()) -> Tensor:
        """Pictures (prompts · seeds, 3, h, w); prompt i is generated under edit i, in turn."""
        parts = []
        each = 16 if len(edits) < 2 else 1
        for i in range(0, len(prompts), each):
            some = prompts[i : i + each]
            with edits[i % len(edits)].applied(Subject(self.model)) if edits else nullcontext():
                parts.append(pictures(self.model, self.repeated(some), self.seeds * len(some), 16 * len(self.seeds)))
        return torch.cat(parts)

    def repeated(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt once a seed."""
        return [prompt for prompt in prompts for _ in self.seeds]

    def copies(self, edits: Sequence[Mitigation] = ()) -> Row:
        """Memorized prompts: rates of copies of the own and of any picture, and the mean ratio to the own picture."""
        prompts = self.repeated(self.memorized)
        images = self.pictures(self.memorized, edits)
        own, nearest = match_own(images, prompts), match_any(images)
        ratio = sum(match.value for match in own) / len(own)
        return {"rate": self.rate(are_copies(own)), "any": self.rate(are_copies(nearest)), "ratio": ratio}

    def rate(self, hits: Sequence[bool]) -> list[float]:
        """The share of hits with its interval over prompts."""
        n = len(self.seeds)
        by_prompt = [sum(hits[i : i + n]) for i in range(0, len(hits), n)]
        rate = rate_interval(by_prompt, [n] * len(by_prompt))
        return [rate.value, rate.low, rate.high]

    def quality(self, free: Tensor, edits: Sequence[Mitigation] = ()) -> Row:
        """Ordinary prompts: SSIM to the unpruned model's pictures of the same seeds, and alignment."""
        images = self.pictures(self.ordinary, edits) if edits else free
        alike = ssim(free, images, scales_for(*free.shape[-2:])).mean()
        return {"quality": float(alike), "alignment": self.align(images, self.repeated(self.ordinary)).mean().item()}


def search(bench: Bench, localizer: Localizer, prompts: Sequence[str]) -> Localization:
    """What a localizer finds; NeMo with what is usual for ordinary prompts, which is measured once."""
    if isinstance(localizer, Nemo):
        localizer = replace(localizer, reference=bench.usual)
    encode = bench.model.encode
    with tqdm(total=len(prompts), desc=localizer.name) as bar:
        return localizer.find(
            Subject(bench.model),
            encode(prompts),
            ordinary=encode(bundle_of(LocateSpec()).ordinary()),
            progress=lambda _, done, __: bar.update(done - bar.n),
        )


def measure(bench: Bench, edits: list[Edit], aimed: list[Edit], free: Tensor) -> Row:
    """Copies and quality under edits, one for every prompt or one for all, and under both controls.

    Random controls are drawn several times; the quality is that of the first draw.
    """
    row: Row = {"selected": mean_selected(edits), "edit": bench.copies(edits) | bench.quality(free, edits)}
    row["ordinary"] = bench.copies(aimed) | bench.quality(free, aimed) | {"selected": mean_selected(aimed)}
    row["random"] = None
    draws = [random_edits(bench, edits, draw) for draw in range(DRAWS)]
    if all(draws):
        row["random"] = [bench.copies(controls) for controls in draws]
        row["random"][0] |= bench.quality(free, draws[0]) | {
            "norm": mean_norm(bench, draws[0]) / mean_norm(bench, edits)
        }
    return row


def random_edits(bench: Bench, edits: list[Edit], draw: int) -> list[Edit]:
    """A random control of each edit; none at all where one of them has none."""
    controls = []
    for i, edit in enumerate(edits):
        control = random_like(edit, bench.model.denoiser, draw * len(edits) + i)
        if control is None:
            return []
        controls.append(control)
    return controls


def hidden_by_all(bench: Bench, rule: Rule) -> int:
    """For how many memorized prompts a rule is met where every value channel is blocked: more no set can do."""
    everything = Nemo(layers="all", start=0.0, minimum=0.0, refine=False, rule=rule)
    found = search(bench, everything, bench.memorized)
    return sum(bool(p.facts.get("hidden")) for p in found.per_prompt)


def mean_selected(edits: list[Edit]) -> float:
    return sum(edit.selected for edit in edits) / len(edits)


def mean_norm(bench: Bench, edits: list[Edit]) -> float:
    return sum(removed_norm(edit, bench.model.denoiser) for edit in edits) / len(edits)


def setting(bench: Bench, locate: Locate, free: Tensor) -> Row:
    """One setting: its cost, and what it does as one edit for all prompts; NeMo also as an edit for each prompt."""
    since = time.process_time()
    found = locate(bench.memorized)
    seconds, count = time.process_time() - since, len(bench.memorized)
    aimed = aimed_at_ordinary(locate, bench.memorized, bench.aimed)
    row: Row = {"units": found.units, "seconds": seconds / count, "evaluations": found.evaluations / count}
    if found.units == "channels":
        row["memorized"] = sum(bool(p.facts["seeds"]) for p in found.per_prompt)
        row["hidden"] = sum(bool(p.facts.get("hidden")) for p in found.per_prompt)
        row["rule"] = found.parameters["rule"]
        own = [Edit.of(found, bench.hashed, prompt=prompt) for prompt in found.per_prompt]
        others = [Edit.of(aimed, bench.hashed, prompt=prompt) for prompt in aimed.per_prompt]
        row["own"] = measure(bench, own, others, free)
    row["together"] = measure(bench, [Edit.of(found, bench.hashed)], [Edit.of(aimed, bench.hashed)], free)
    return row


def page(results: Row) -> list[str]:
    """The numbers as a page."""
    free, asked, rows = results["free"], results["options"], []
    for name in [name for name in LOCALIZERS if name in results["settings"]]:
        row = results["settings"][name]
        for scope, edit in (("together", "one for all"), ("own", "each prompt's")):
            if scope in row:
                rows.append(
                    [name, edit, *cells(row[scope], row["units"]), f"{row['evaluations']:.0f}", f"{row['seconds']:.1f}"]
                )
    head = ["setting", "edit", "units", "copy rate", "ratio", "quality", "alignment"]
    head += ["ordinary prompts' edit: units", "copy rate", "quality", "alignment"]
    head += ["random edits: norm", "copy rate", "quality", "evaluations per prompt", "seconds per prompt"]
    nemo_rows = [(name, row) for name, row in results["settings"].items() if "rule" in row]
    return [
        f"{asked['memorized']} memorized prompts, {asked['ordinary']} ordinary ones, seeds {asked['seeds']}. Without "
        f"pruning: copy rate {rates(free)}, ratio {free['ratio']:.2f}, alignment {free['alignment']:.2f}. Copies are "
        "of the prompt's own picture; where another rate is named, pictures copy others too. *Ordinary prompts' edit*: "
        f"the method aimed at {asked['memorized']} ordinary prompts, measured with the memorized ones. *Random "
        f"edits*: mean and range of {DRAWS} draws of equal size from outside of the edit, with the norm of the weights "
        "that they remove as a share of the edit's; – where an edit leaves too little outside of it for a control.",
        "",
        *table(head, rows),
        "",
        *table(
            ["setting", "rule", "memorized by NeMo's threshold", "of them hidden"],
            [[name, row["rule"], str(row["memorized"]), str(row["hidden"])] for name, row in nemo_rows]
            + [["all value channels off", rule, "–", str(count)] for rule, count in results["all off"].items()],
        ),
        "",
        "![Copies against quality](results/pruning.png)",
    ]


def cells(row: Row, units: str) -> list[str]:
    edit, other, draws = row["edit"], row["ordinary"], row["random"]
    shown = [f"{row['selected']:.0f} {units}", rates(edit), f"{edit['ratio']:.2f}"]
    shown += [f"{edit['quality']:.2f}", f"{edit['alignment']:.2f}"]
    shown += [f"{other['selected']:.0f}", rates(other), f"{other['quality']:.2f}", f"{other['alignment']:.2f}"]
    if draws is None:
        return [*shown, "–", "–", "–"]
    left = [draw["rate"][0] for draw in draws]
    spread = f"{sum(left) / len(left):.3f} ({min(left):.3f} to {max(left):.3f})"
    return [*shown, f"{draws[0]['norm']:.2f}", spread, f"{draws[0]['quality']:.2f}"]


def rates(row: Row) -> str:
    """The rate of copies of own pictures, and that of any picture's where it is another."""
    own = show(Interval(*row["rate"]))
    return own if row["any"] == row["rate"] else f"{own} (any picture: {row['any'][0]:.3f})"


def figure(results: Row, path: Path) -> None:
    """Copies left against what ordinary prompts keep, every setting beside its control with ordinary prompts."""
    canvas = Figure(figsize=(6, 4), layout="constrained")
    axis = canvas.subplots()
    axis.axhline(results["free"]["rate"][0], color="grey", linestyle=":", label="unpruned")
    for name, row in results["settings"].items():
        edit, other = row["together"]["edit"], row["together"]["ordinary"]
        dot = axis.scatter(edit["quality"], edit["rate"][0], label=name)
        axis.scatter(other["quality"], other["rate"][0], facecolors="none", edgecolors=dot.get_facecolor())
    axis.set(
        xlabel="SSIM of ordinary prompts' pictures to the unpruned model's", ylabel="copy rate", ylim=(-0.02, None)
    )
    axis.legend(frameon=False, fontsize="small", title="hollow: aimed at ordinary prompts", title_fontsize="small")
    with atomic(path) as temporary:
        canvas.savefig(temporary, format="png", metadata={"Software": None}, dpi=120)


def alike_between_seeds(model: DiffusionModel, prompts: Sequence[str], threshold: float) -> list[str]:
    """The prompts that NeMo's threshold calls memorized: a search selects channels for these alone."""
    start = Start.of(model, SEEDS)
    chosen = []
    for prompt in prompts:
        differences = start.unblocked(model, model.encode([prompt]))[0]
        if pairwise_ssim(differences, scales_for(*differences.shape[-2:])).max() > threshold:
            chosen.append(prompt)
    return chosen


def prepare(prompts: int = 18, ordinary: int = 24, seeds: int = 2) -> Bench:
    model, everyone = load("testbed"), bundle_of(LocateSpec()).ordinary()
    hashed = model.fingerprint
    usual = cached_reference(model, model.encode(everyone), cache_folder())
    memorable = sorted(planted(lambda p: p.memorable), key=lambda p: (KINDS.index(p.kind), -p.copies, p.id))
    step = max(len(planted(lambda p: True)) // ordinary // 2, 1)
    judged = everyone[::step][:ordinary]
    others = [prompt for prompt in everyone if prompt not in judged]
    candidates = [others[i] for i in evenly(len(others), CANDIDATES)]
    return Bench(
        model=model,
        hashed=hashed,
        memorized=[p.text for p in memorable][:prompts],
        ordinary=judged,
        aimed=alike_between_seeds(model, candidates, usual.threshold)[:prompts],
        usual=usual,
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
        align=Alignment(model),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=18, help="memorized prompts")
    parser.add_argument("--ordinary", type=int, default=24, help="ordinary prompts")
    parser.add_argument("--seeds", type=int, default=2, help="pictures per prompt")
    parser.add_argument("--only", default="", help="measure settings whose name contains this")
    options = parser.parse_args()
    bench = prepare(options.prompts, options.ordinary, options.seeds)
    asked = {"memorized": len(bench.memorized), "ordinary": len(bench.ordinary), "seeds": list(bench.seeds)}
    asked |= {"judged by": "own picture", "draws": DRAWS}
    same = {"fingerprint": bench.hashed, "options": asked}
    results, free = kept("pruning", same), bench.pictures(bench.ordinary)
    if "free" not in results:
        results["free"] = bench.copies() | bench.quality(free)
        write_json(RESULTS, results)
    if "all off" not in results:
        results["all off"] = {rule: hidden_by_all(bench, rule) for rule in ("published", "ordinary")}
    for name, localizer in LOCALIZERS.items():
        if name not in results["settings"] and options.only in name:
            row = setting(bench, partial(search, bench, localizer), free)
            # Another process may have added its settings.
            results = kept("pruning", same) | {"free": results["free"], "all off": results["all off"]}
            results["settings"][name] = row
            write_json(RESULTS, results)
    write("pruning", results, page(results))
    figure(results, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
