"""What pruning does to the shipped testbed: copies left, what it costs ordinary prompts, and a random control.

    python benchmarks/pruning.py [--prompts 18] [--ordinary 24] [--seeds 2]

Writes docs/results/pruning.{json,md,png}. A setting that is already in the JSON, with its alignment and for the same
model and options, is not measured again. Pictures come from seeds that no search looks at; the unpruned model's are the
same for every setting.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from common import OUT, REFERENCES, kept, pictures, planted, table, write
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from unmemorize.core.results import Localization
from unmemorize.core.run import atomic, write_json
from unmemorize.jobs.locate import LocateSpec, cache_folder, cached_reference, ordinary_prompts
from unmemorize.localize.nemo import NemoSettings, nemo
from unmemorize.localize.reference import Reference
from unmemorize.localize.wanda import wanda
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import match_pixels
from unmemorize.metrics.ssim import scales_for, ssim
from unmemorize.mitigate.weights import Edit, random_like
from unmemorize.models.load import fingerprint, load
from unmemorize.models.unet import UNetModel
from unmemorize.testbed.alignment import Alignment

RESULTS = OUT / "pruning.json"
FIRST_SEED = 100
NEMO = [  # layers, minimum θ, refined or not
    ("down-mid", 2.0, True),
    ("down-mid", 1.0, True),
    ("down-mid", 1.0, False),
    ("all", 2.0, True),
    ("all", 1.0, True),
    ("all", 1.0, False),
    ("all", 0.25, True),
    ("all", 0.25, False),
]
WANDA = [0.01, 0.03, 0.1, 0.4, 0.5]
KINDS = ("verbatim", "repeat", "template", "word")  # in this order, as many prompts as asked for


@dataclass(frozen=True)
class Bench:
    """What every setting is measured with."""

    model: UNetModel
    hashed: str
    memorized: list[str]
    ordinary: list[str]
    seeds: tuple[int, ...]
    align: Alignment

    def pictures(self, prompts: Sequence[str], edits: Sequence[Edit] = ()) -> Tensor:
        """Pictures (prompts · seeds, 3, h, w); prompt i is generated under edit i, in turn."""
        found = []
        each = 16 if len(edits) < 2 else 1
        for i in range(0, len(prompts), each):
            some = prompts[i : i + each]
            with edits[i % len(edits)].applied(self.model) if edits else nullcontext():
                found.append(pictures(self.model, self.repeated(some), self.seeds * len(some), 16 * len(self.seeds)))
        return torch.cat(found)

    def repeated(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt once a seed."""
        return [prompt for prompt in prompts for _ in self.seeds]

    def copies(self, edits: Sequence[Edit] = ()) -> dict[str, float | list[float]]:
        """Memorized prompts: copy rate with its interval over them, and the mean ratio that is judged: low is close."""
        matches, n = match_pixels(self.pictures(self.memorized, edits), REFERENCES), len(self.seeds)
        hits = [sum(m.verdict != "none" for m in matches[i : i + n]) for i in range(0, len(matches), n)]
        rate = rate_interval(hits, [n] * len(hits))
        return {"rate": [rate.value, rate.low, rate.high], "ratio": sum(m.value for m in matches) / len(matches)}

    def quality(self, free: Tensor, edits: Sequence[Edit] = ()) -> dict[str, float]:
        """Ordinary prompts: SSIM to the unpruned model's pictures of the same seeds, and alignment."""
        images = self.pictures(self.ordinary, edits) if edits else free
        alike = ssim(free, images, scales_for(*free.shape[-2:])).mean()
        return {"quality": float(alike), "alignment": self.align(images, self.repeated(self.ordinary)).mean().item()}


def searches(bench: Bench) -> dict[str, Callable[[], Localization]]:
    """Every setting by name."""
    everyone = ordinary_prompts(LocateSpec())
    usual = cached_reference(bench.model, everyone, bench.hashed, cache_folder(), lambda stage, done, total: None)
    named = {}
    for layers, theta, refined in NEMO:
        name = f"NeMo, {layers}, θ ≥ {theta:g}" + ("" if refined else ", not refined")
        settings = NemoSettings(layers=layers, minimum=theta, refine=refined)
        named[name] = partial(run_nemo, bench, usual, settings, name)
    for share in WANDA:
        named[f"Wanda, {share:.0%}"] = partial(wanda, bench.model, bench.memorized, sparsity=share)
    return named


def run_nemo(bench: Bench, usual: Reference, settings: NemoSettings, name: str) -> Localization:
    with tqdm(total=len(bench.memorized), desc=name) as bar:
        return nemo(bench.model, bench.memorized, usual, settings, lambda _, done, __: bar.update(done - bar.n))


def measure(bench: Bench, edits: list[Edit], free: Tensor) -> dict:
    """Copies and quality under edits, one for every prompt or one for all, and under random ones of their size."""
    found = {}
    for name, some in (("edit", edits), ("random", [random_like(edit, i) for i, edit in enumerate(edits)])):
        found[name] = bench.copies(some) | bench.quality(free, some)
    return found | {"selected": sum(edit.selected for edit in edits) / len(edits)}


def setting(bench: Bench, search: Callable[[], Localization], free: Tensor) -> dict:
    """One setting: its cost, and what it does as one edit for all prompts; NeMo also as an edit for each prompt."""
    since = time.perf_counter()
    found = search()
    seconds, count = time.perf_counter() - since, len(bench.memorized)
    row = {
        "units": found.units,
        "seconds": seconds / count,
        "evaluations": found.evaluations / count,
        "memorized": sum(bool(p.facts["seeds"]) for p in found.per_prompt) if found.units == "channels" else None,
        "hidden": sum(p.facts["hidden"] for p in found.per_prompt) if found.units == "channels" else None,
        "together": measure(bench, [Edit.of(found, bench.hashed)], free),
    }
    if found.units == "channels":
        own = [Edit.of(found, bench.hashed, prompt=prompt) for prompt in found.per_prompt]
        row["own"] = measure(bench, own, free)
    return row


def page(results: dict) -> list[str]:
    """The numbers as a page."""
    free, asked, rows = results["free"], results["options"], []
    for name, row in results["settings"].items():
        for scope, edit in (("together", "one for all"), ("own", "each prompt's")):
            if scope in row:
                m, c = row[scope]["edit"], row[scope]["random"]
                cells = [name, edit, f"{row[scope]['selected']:.0f} {row['units']}", interval(m), f"{m['ratio']:.2f}"]
                cells += [f"{m['quality']:.2f}", alignment(m), interval(c), f"{c['quality']:.2f}", alignment(c)]
                rows.append([*cells, f"{row['evaluations']:.0f}", f"{row['seconds']:.1f}"])
    head = ["setting", "edit", "units", "copy rate", "ratio", "quality", "alignment", "random: copy rate"]
    head += ["random: quality", "random: alignment", "evaluations per prompt", "seconds per prompt"]
    nemo_rows = [(n, row) for n, row in results["settings"].items() if row["memorized"] is not None]
    return [
        f"{asked['memorized']} memorized prompts, {asked['ordinary']} ordinary ones, seeds {asked['seeds']}. Without "
        f"pruning: copy rate {interval(free)}, ratio {free['ratio']:.2f}, alignment {alignment(free)}.",
        "",
        *table(head, rows),
        "",
        *table(
            ["setting", "memorized by NeMo's threshold", "of them hidden"],
            [[name, str(row["memorized"]), f"{row['hidden']:.0f}"] for name, row in nemo_rows],
        ),
    ]


def alignment(row: dict) -> str:
    return f"{row['alignment']:.2f}" if "alignment" in row else "–"


def interval(row: dict) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*row["rate"])


def figure(results: dict, path: Path) -> None:
    """Copies left against what ordinary prompts keep, every setting beside its random control."""
    canvas = Figure(figsize=(6, 4), layout="constrained")
    axis = canvas.subplots()
    axis.axhline(results["free"]["rate"][0], color="grey", linestyle=":", label="unpruned")
    for name, row in results["settings"].items():
        m, c = row["together"]["edit"], row["together"]["random"]
        dot = axis.scatter(m["quality"], m["rate"][0], label=name)
        axis.scatter(c["quality"], c["rate"][0], facecolors="none", edgecolors=dot.get_facecolor())
    axis.set(
        xlabel="SSIM of ordinary prompts' pictures to the unpruned model's", ylabel="copy rate", ylim=(-0.02, None)
    )
    axis.legend(frameon=False, fontsize="small", title="hollow: random", title_fontsize="small")
    with atomic(path) as temporary:
        canvas.savefig(temporary, format="png", metadata={"Software": None}, dpi=120)


def prepare(options: argparse.Namespace) -> Bench:
    model, ordinary = load("testbed"), ordinary_prompts(LocateSpec())
    memorable = sorted(planted(lambda p: p.memorable), key=lambda p: (KINDS.index(p.kind), -p.copies, p.id))
    step = max(len(planted(lambda p: True)) // options.ordinary // 2, 1)
    return Bench(
        model=model,
        hashed=fingerprint(model),
        memorized=[p.text for p in memorable][: options.prompts],
        ordinary=ordinary[::step][: options.ordinary],
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + options.seeds)),
        align=Alignment(model),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=18, help="memorized prompts")
    parser.add_argument("--ordinary", type=int, default=24, help="ordinary prompts")
    parser.add_argument("--seeds", type=int, default=2, help="pictures per prompt")
    parser.add_argument("--only", default="", help="measure settings whose name contains this")
    options = parser.parse_args()
    bench = prepare(options)
    asked = {"memorized": len(bench.memorized), "ordinary": len(bench.ordinary), "seeds": list(bench.seeds)}
    results = kept("pruning", {"fingerprint": bench.hashed, "options": asked})
    free = bench.pictures(bench.ordinary)
    if "alignment" not in results.get("free", {}):
        results["free"] = bench.copies() | bench.quality(free)
    for name, search in searches(bench).items():
        done = results["settings"].get(name, {"together": {"edit": {}}})
        if "alignment" not in done["together"]["edit"] and options.only in name:
            results["settings"][name] = setting(bench, search, free)
            write_json(RESULTS, results)
    write("pruning", results, page(results))
    figure(results, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
