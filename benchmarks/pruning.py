"""What pruning does to the shipped testbed: copies left, what it costs ordinary prompts, and a random control.

    python benchmarks/pruning.py [--prompts 18] [--ordinary 24] [--seeds 2]

Writes docs/results/pruning.{json,md,png}. A setting that is already in the JSON, for the same model and options, is not
measured again. Pictures come from seeds that no search looks at; the unpruned model's are the same for every setting.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from unmemorize.core.results import Localization
from unmemorize.core.run import atomic, write_json
from unmemorize.core.sample import generate
from unmemorize.data.source import read_references
from unmemorize.jobs.inputs import prompts_of
from unmemorize.jobs.locate import LocateSpec, cache_folder, cached_reference, ordinary_prompts
from unmemorize.localize.nemo import NemoSettings, nemo
from unmemorize.localize.wanda import wanda
from unmemorize.metrics.ranking import rate_interval
from unmemorize.metrics.similarity import References, match_pixels
from unmemorize.metrics.ssim import scales_for, ssim
from unmemorize.mitigate.weights import Edit, random_like
from unmemorize.models.load import fingerprint, load
from unmemorize.models.unet import UNetModel
from unmemorize.testbed.embedded import IMAGES

OUT = Path("docs/results/pruning.json")
FIRST_SEED, STEPS, GUIDANCE = 100, 16, 7.5
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
    references: References

    def pictures(self, prompts: Sequence[str], edits: Sequence[Edit] = ()) -> Tensor:
        """Pictures (prompts · seeds, 3, h, w); prompt i is generated under edit i, in turn."""
        found = []
        each = 16 if len(edits) < 2 else 1
        for i in range(0, len(prompts), each):
            some = [prompt for prompt in prompts[i : i + each] for _ in self.seeds]
            with edits[i % len(edits)].applied(self.model) if edits else nullcontext():
                cond, seeds = self.model.encode(some), self.seeds * len(prompts[i : i + each])
                found.append(generate(self.model, cond, seeds=seeds, steps=STEPS, guidance=GUIDANCE))
        return torch.cat(found)

    def copies(self, images: Tensor) -> dict[str, float | list[float]]:
        """Copy rate with its interval over prompts, and the mean ratio that is judged: low is close."""
        matches = match_pixels(images, self.references)
        n = len(self.seeds)
        hits = [sum(m.verdict != "none" for m in matches[i : i + n]) for i in range(0, len(matches), n)]
        rate = rate_interval(hits, [n] * len(hits))
        return {"rate": [rate.value, rate.low, rate.high], "ratio": sum(m.value for m in matches) / len(matches)}


def alike(a: Tensor, b: Tensor) -> float:
    """Mean SSIM of pictures of the same prompts and seeds."""
    return float(ssim(a, b, scales_for(*a.shape[-2:])).mean())


def searches(bench: Bench) -> dict[str, Callable[[], Localization]]:
    """Every setting by name."""
    everyone = ordinary_prompts(LocateSpec())
    usual = cached_reference(bench.model, everyone, bench.hashed, cache_folder(), lambda stage, done, total: None)

    def run_nemo(layers: str, theta: float, refined: bool) -> Localization:
        settings = NemoSettings(layers=layers, minimum=theta, refine=refined)
        with tqdm(total=len(bench.memorized), desc=f"nemo {layers} {theta}") as bar:
            return nemo(bench.model, bench.memorized, usual, settings, lambda _, done, __: bar.update(done - bar.n))

    def run_wanda(share: float) -> Localization:
        return wanda(bench.model, bench.memorized, sparsity=share)

    named = {}
    for layers, theta, refined in NEMO:
        name = f"NeMo, {layers}, θ ≥ {theta:g}" + ("" if refined else ", not refined")
        named[name] = lambda s=(layers, theta, refined): run_nemo(*s)
    return named | {f"Wanda, {share:.0%}": lambda share=share: run_wanda(share) for share in WANDA}


def measure(bench: Bench, edits: list[Edit], free: Tensor) -> dict:
    """Copies and quality under edits, one for every prompt or one for all, and under random ones of their size."""
    found = {}
    for name, some in (("edit", edits), ("random", [random_like(edit, i) for i, edit in enumerate(edits)])):
        found[name] = bench.copies(bench.pictures(bench.memorized, some))
        found[name]["quality"] = alike(free, bench.pictures(bench.ordinary, some))
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


def markdown(results: dict) -> str:
    """The numbers as a page."""
    free = results["free"]
    lines = [
        f"{results['options']['memorized']} memorized prompts, {results['options']['ordinary']} ordinary ones, seeds "
        f"{results['options']['seeds']}. Without pruning: copy rate {interval(free)}, ratio {free['ratio']:.2f}.",
        "",
        "| setting | edit | units | copy rate | ratio | quality | random: copy rate | random: quality | "
        "evaluations per prompt | seconds per prompt |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results["settings"].items():
        for scope in ("together", "own"):
            if scope in row:
                m, c = row[scope]["edit"], row[scope]["random"]
                edit = "one for all" if scope == "together" else "each prompt's"
                cells = [name, edit, f"{row[scope]['selected']:.0f} {row['units']}", interval(m), f"{m['ratio']:.2f}"]
                cells += [f"{m['quality']:.2f}", interval(c), f"{c['quality']:.2f}"]
                lines.append("| " + " | ".join([*cells, f"{row['evaluations']:.0f}", f"{row['seconds']:.1f}"]) + " |")
    lines += ["", "| setting | memorized by NeMo's threshold | of them hidden |", "|---|---|---|"]
    nemo_rows = ((name, row) for name, row in results["settings"].items() if row["memorized"] is not None)
    lines += [f"| {name} | {row['memorized']} | {row['hidden']:.0f} |" for name, row in nemo_rows]
    return "\n".join(lines) + "\n"


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
    model, every = load("testbed"), prompts_of("testbed")
    memorable = sorted((p for p in every if p.memorable), key=lambda p: (KINDS.index(p.kind), -p.copies, p.id))
    return Bench(
        model=model,
        hashed=fingerprint(model),
        memorized=[p.text for p in memorable][: options.prompts],
        ordinary=ordinary_prompts(LocateSpec())[:: max(len(every) // options.ordinary // 2, 1)][: options.ordinary],
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + options.seeds)),
        references=read_references(IMAGES, model.image_size),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=18, help="memorized prompts")
    parser.add_argument("--ordinary", type=int, default=24, help="ordinary prompts")
    parser.add_argument("--seeds", type=int, default=2, help="pictures per prompt")
    parser.add_argument("--only", default="", help="measure settings whose name contains this")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    bench = prepare(options)
    asked = {"memorized": len(bench.memorized), "ordinary": len(bench.ordinary), "seeds": list(bench.seeds)}
    results = {"fingerprint": bench.hashed, "options": asked, "settings": {}}
    if options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        if all(before[key] == results[key] for key in ("fingerprint", "options")):
            results = before
    free = bench.pictures(bench.ordinary)
    if "free" not in results:
        results["free"] = bench.copies(bench.pictures(bench.memorized))
    for name, search in searches(bench).items():
        if name not in results["settings"] and options.only in name:
            results["settings"][name] = setting(bench, search, free)
            write_json(options.out, results)
    with atomic(options.out.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(results), encoding="utf-8")
    figure(results, options.out.with_suffix(".png"))
    print(markdown(results))


if __name__ == "__main__":
    main()
