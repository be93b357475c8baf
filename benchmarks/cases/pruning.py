"""What pruning does to the shipped testbed: copies left, what it costs ordinary prompts, and two controls.

A picture counts as a copy where it copies its *own* prompt's training picture; what copies any training picture stands
beside it. The controls are random edits of equal size and like norms, drawn from outside of the edit, and the same
method aimed at as many ordinary prompts; both are measured with the memorized prompts. Pictures come from seeds that no
search looks at; the unpruned model's are the same for every setting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from changed import Bench, bench_of, rates
from common import TESTBED
from harness import Cases, Options, Row, Study, save_figure, table
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from unmemorize.core.methods import Localizer, Subject
from unmemorize.core.results import Localization
from unmemorize.localize.control import aimed_at_ordinary
from unmemorize.localize.nemo import Nemo, Rule
from unmemorize.localize.wanda import Wanda
from unmemorize.mitigate.edit import Edit, random_like, removed_norm

DRAWS = 3  # random controls of an edit
UNPRUNED, ALL_OFF = "unpruned", "all value channels off"
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

Locate = Callable[[Sequence[str]], Localization]


def search(bench: Bench, localizer: Localizer, prompts: Sequence[str]) -> Localization:
    """What a localizer finds; NeMo with what is usual for ordinary prompts, which is measured once."""
    if isinstance(localizer, Nemo):
        localizer = replace(localizer, reference=bench.usual)
    encode = bench.model.encode
    with tqdm(total=len(prompts), desc=localizer.name) as bar:
        return localizer.find(
            Subject(bench.model),
            encode(prompts),
            ordinary=encode(TESTBED.ordinary()),
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


def setting(bench: Bench, localizer: Localizer, free: Tensor) -> Row:
    """One setting: its cost, and what it does as one edit for all prompts; NeMo also as an edit for each prompt."""
    locate, hashed = partial(search, bench, localizer), bench.model.fingerprint
    since = time.process_time()
    found = locate(bench.memorized)
    seconds, count = time.process_time() - since, len(bench.memorized)
    aimed = aimed_at_ordinary(locate, bench.memorized, bench.aimed)
    row: Row = {"units": found.units, "seconds": seconds / count, "evaluations": found.evaluations / count}
    if found.units == "channels":
        row["memorized"] = sum(bool(p.facts["seeds"]) for p in found.per_prompt)
        row["hidden"] = sum(bool(p.facts.get("hidden")) for p in found.per_prompt)
        row["rule"] = found.parameters["rule"]
        own = [Edit.of(found, hashed, prompt=prompt) for prompt in found.per_prompt]
        others = [Edit.of(aimed, hashed, prompt=prompt) for prompt in aimed.per_prompt]
        row["own"] = measure(bench, own, others, free)
    row["together"] = measure(bench, [Edit.of(found, hashed)], [Edit.of(aimed, hashed)], free)
    return row


def cases(options: Options) -> Cases:
    """The unpruned model, what hides at most, and every setting."""
    bench = bench_of(options.prompts, options.ordinary, options.seeds)
    free = bench.pictures(bench.ordinary)
    measures: dict[str, Callable[[Row], Row]] = {
        UNPRUNED: lambda rows: bench.copies() | bench.quality(free),
        ALL_OFF: lambda rows: {rule: hidden_by_all(bench, rule) for rule in ("published", "ordinary")},
    }
    for name, localizer in LOCALIZERS.items():
        measures[name] = lambda rows, localizer=localizer: setting(bench, localizer, free)
    asked = {"memorized": len(bench.memorized), "ordinary": len(bench.ordinary), "seeds": list(bench.seeds)}
    asked |= {"judged by": "own picture", "draws": DRAWS}
    return Cases({"fingerprint": bench.model.fingerprint, "options": asked}, measures)


def page(results: Row) -> Iterator[str]:
    """Copies and quality under every edit and its controls, and what NeMo's rules take for hidden."""
    asked, settings, rows = results["options"], results["settings"], []
    if UNPRUNED not in settings:
        return
    free, off = settings[UNPRUNED], settings.get(ALL_OFF, {})
    named = {name: settings[name] for name in LOCALIZERS if name in settings}
    for name, row in named.items():
        for scope, edit in (("together", "one for all"), ("own", "each prompt's")):
            if scope in row:
                cost = [f"{row['evaluations']:.0f}", f"{row['seconds']:.1f}"]
                rows.append([name, edit, *cells(row[scope], row["units"]), *cost])
    yield (
        f"{asked['memorized']} memorized prompts, {asked['ordinary']} ordinary ones, seeds {asked['seeds']}. Without "
        f"pruning: copy rate {rates(free)}, ratio {free['ratio']:.2f}, alignment {free['alignment']:.2f}. Copies are "
        "of the prompt's own picture; where another rate is named, pictures copy others too. *Ordinary prompts' edit*: "
        f"the method aimed at {asked['memorized']} ordinary prompts, measured with the memorized ones. *Random "
        f"edits*: mean and range of {DRAWS} draws of equal size from outside of the edit, with the norm of the weights "
        "that they remove as a share of the edit's; – where an edit leaves too little outside of it for a control."
    )
    head = (
        "setting | edit | units | copy rate | ratio | quality | alignment | ordinary prompts' edit: units | copy rate"
    )
    head += " | quality | alignment | random edits: norm | copy rate | quality | evaluations per prompt"
    yield from ("", *table(f"{head} | seconds per prompt", rows), "")
    rules = [[name, r["rule"], str(r["memorized"]), str(r["hidden"])] for name, r in settings.items() if "rule" in r]
    rules += [[ALL_OFF, rule, "–", str(count)] for rule, count in off.items()]
    yield from table("setting | rule | memorized by NeMo's threshold | of them hidden", rules)
    yield from ("", "![Copies against quality](results/pruning.png)")


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


def figure(results: Row) -> None:
    """Copies left against what ordinary prompts keep, every setting beside its control with ordinary prompts."""
    if UNPRUNED not in results["settings"]:
        return
    canvas = Figure(figsize=(6, 4), layout="constrained")
    axis = canvas.subplots()
    axis.axhline(results["settings"][UNPRUNED]["rate"][0], color="grey", linestyle=":", label="unpruned")
    for name, row in results["settings"].items():
        if name in LOCALIZERS:
            edit, other = row["together"]["edit"], row["together"]["ordinary"]
            dot = axis.scatter(edit["quality"], edit["rate"][0], label=name)
            axis.scatter(other["quality"], other["rate"][0], facecolors="none", edgecolors=dot.get_facecolor())
    axis.set(
        xlabel="SSIM of ordinary prompts' pictures to the unpruned model's", ylabel="copy rate", ylim=(-0.02, None)
    )
    axis.legend(frameon=False, fontsize="small", title="hollow: aimed at ordinary prompts", title_fontsize="small")
    save_figure(canvas, "pruning.png")


STUDY = Study(
    title="Pruning",
    about="NeMo and Wanda, the memorized prompts at seeds the search never saw, beside two controls: the method aimed "
    "at ordinary prompts, and random edits of equal size and like norms.",
    page=page,
    measure=cases,
    options={"prompts": 18, "ordinary": 24, "seeds": 2},
    figures=figure,
)
