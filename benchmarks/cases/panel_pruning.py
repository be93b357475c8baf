"""Pruning on the reporting branches of the panel, in both families, and where their copies are held.

Memorized are the pictures that were planted a hundred times in a branch and never in the other one. Copies of each
picture itself count. A part of the network is exchanged for that of the other branch, which has the same trunk and
does not know these pictures: where copies go, the part is needed for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache, partial

import torch
from branches import (
    FLOW,
    OFTEN,
    REPORTING,
    forget_retrained,
    letter,
    ordinary,
    other_of,
    pairs,
    pictures,
    places_of,
    references,
    subject_of,
)
from common import are_copies, match_closest
from harness import Cases, Options, Row, Study, numbers_of, show, table

from unmemorize.core.methods import Localizer, Mitigation, Subject, parse
from unmemorize.core.results import Localization
from unmemorize.localize.control import aimed_at_ordinary
from unmemorize.localize.wanda import Wanda
from unmemorize.metrics.ranking import share_interval
from unmemorize.metrics.ssim import scales_for, ssim
from unmemorize.mitigate.edit import Edit
from unmemorize.mitigate.tuned import Tuned
from unmemorize.testbed.panel import Entry

SEED = 500
NONE = "unpruned"
EVERY = [*REPORTING, *FLOW]
WANDA = {f"Wanda, {share:.0%}": f"wanda:sparsity={share}" for share in (0.01, 0.1, 0.4, 0.5)}
NEMO = "NeMo, all layers, θ ≥ 1, not refined, each prompt's"
OF_UNET = WANDA | {NEMO: "nemo:layers=all,refine=false"}
OF_TRANSFORMER = WANDA | {NEMO: "nemo-joint:layers=all,refine=false"}
Inside = Callable[[str], bool]


def named(*parts: str) -> Inside:
    """Whether a parameter's name holds one of these."""
    return lambda name: any(part in name for part in parts)


UNET: Mapping[str, Inside] = {
    "second feed-forward layers, which Wanda prunes": named(".ff.net.2."),
    "cross-attention values, which NeMo prunes": named(".attn2.to_v."),
    "cross-attention keys and values": named(".attn2.to_v.", ".attn2.to_k."),
    "feed-forward layers": named(".ff."),
    "attention and feed-forward layers": named(".transformer_blocks."),
    "residual blocks": named(".resnets."),
}
TRANSFORMER: Mapping[str, Inside] = {
    "second feed-forward layers": named(".ff.net.2.", ".ff_context.net.2."),
    "value projections of the text's stream, which NeMo prunes": named(".add_v_proj."),
    "attention projections of the text's stream": named(".add_q_proj.", ".add_k_proj.", ".add_v_proj.", "to_add_out"),
    "attention projections of the picture's stream": named(".attn.to_"),
    "feed-forward layers of the text's stream": named(".ff_context."),
    "feed-forward layers of the picture's stream": named(".ff."),
    "modulation by time and pooled text": named(".norm1.", ".norm1_context.", "time_text_embed", "norm_out"),
    "all layers of the blocks": named("transformer_blocks."),
}


def parts_of(branch: str) -> Mapping[str, Inside]:
    """The parts of a branch's network."""
    return TRANSFORMER if branch in FLOW else UNET


@cache
def memorized(branch: str) -> list[Entry]:
    """The pictures that were planted a hundred times in a branch and never in the other."""
    return [entry for entry in pairs() if entry.dose(letter(branch)) == OFTEN]


def drawn(subject: Subject, texts: Sequence[str], edits: Sequence[Mitigation]) -> torch.Tensor:
    """A picture of each text, under the edit of the same place, or under the only one."""
    if len(edits) < 2:
        with edits[0].applied(subject) if edits else nullcontext(subject) as changed:
            return pictures(changed, texts, [SEED] * len(texts))
    parts = []
    for i, text in enumerate(texts):
        with edits[i % len(edits)].applied(subject) as changed:
            parts.append(pictures(changed, [text], [SEED]))
    return torch.cat(parts)


@cache
def unchanged(subject: Subject) -> torch.Tensor:
    """The pictures of ordinary prompts by a model as it came."""
    return drawn(subject, ordinary()[0], [])


def measured(subject: Subject, entries: Sequence[Entry], edits: Sequence[Mitigation]) -> Row:
    """Which pictures come back, their likeness to the own ones, and that of ordinary pictures to the unchanged ones."""
    images = drawn(subject, [entry.prompts[0] for entry in entries], edits)
    copies = are_copies(match_closest(images, [places_of(entry) for entry in entries], references()))
    harmed = drawn(subject, ordinary()[0], edits)
    own = references()[[places_of(entry)[0] for entry in entries]].images
    return {
        "fingerprint": subject.model.fingerprint,
        "copied": dict(zip([entry.id for entry in entries], copies, strict=True)),
        "likeness": ssim(images, own, scales_for(*own.shape[-2:])).mean().item(),
        "quality": ssim(unchanged(subject), harmed, scales_for(*harmed.shape[-2:])).mean().item(),
    }


def pruned(subject: Subject, entries: Sequence[Entry], setting: str) -> Row:
    """One setting aimed at the memorized prompts, and the same aimed at as many ordinary ones.

    What is found is removed for all prompts together by Wanda, and each prompt's own for itself by NeMo.
    """
    localizer: Localizer = parse("localizer", setting)
    encode = subject.model.encode
    _, others = ordinary()

    def locate(texts: Sequence[str]) -> Localization:
        return localizer.find(subject, encode(texts), ordinary=encode(others))

    texts = [entry.prompts[0] for entry in entries]
    found, aimed = locate(texts), aimed_at_ordinary(locate, texts, others)
    row: Row = {}
    for name, location in (("edit", found), ("aimed at ordinary prompts", aimed)):
        if isinstance(localizer, Wanda):
            edits = [Edit.of(location, subject.model.fingerprint)]
        else:
            edits = [Edit.of(location, subject.model.fingerprint, prompt=prompt) for prompt in location.per_prompt]
        row[name] = measured(subject, entries, edits) | {"selected": sum(edit.selected for edit in edits) / len(edits)}
    return row | {"fingerprint": subject.model.fingerprint, "units": found.units}


def unpruned(branch: str) -> Row:
    """A branch as it came."""
    return measured(subject_of(branch), memorized(branch), [])


def prune(branch: str, setting: str, rows: Row) -> Row:
    """`pruned` of a branch and its memorized pictures."""
    return pruned(subject_of(branch), memorized(branch), setting)


def exchanged(branch: str, part: str, rows: Row) -> Row:
    """One part with the weights of the other reporting branch of the same family."""
    other = subject_of(other_of(branch)).model
    inside = parts_of(branch)[part]
    values = {name: value.detach() for name, value in other.denoiser.named_parameters() if inside(name)}
    size = sum(value.numel() for value in values.values())
    share = size / sum(value.numel() for value in other.denoiser.parameters())
    edit = Tuned(other.name, other.fingerprint, values)
    return measured(subject_of(branch), memorized(branch), [edit]) | {"weights": share}


def cases(options: Options) -> Cases:
    """Both branches of both families, as they came, pruned, and with a part of the other."""
    named_cases: dict[str, Callable[[Row], Row]] = {}
    for branch in EVERY:
        named_cases[f"{branch} | {NONE}"] = lambda rows, branch=branch: unpruned(branch)
        for part in parts_of(branch):
            named_cases[f"{branch} | part: {part}"] = partial(exchanged, branch, part)
        for name, setting in (OF_TRANSFORMER if branch in FLOW else OF_UNET).items():
            named_cases[f"{branch} | {name}"] = partial(prune, branch, setting)
    return Cases({"seed": SEED}, named_cases, forget_retrained)


def rate(rows: Sequence[Row]) -> str:
    """The share of pictures that come back, over branches."""
    copied = [[int(value)] for row in rows for value in row["copied"].values()]
    return show(numbers_of(share_interval(torch.tensor(copied).numpy())))


def mean(rows: Sequence[Row], name: str) -> str:
    return f"{sum(row[name] for row in rows) / len(rows):.2f}"


def page(results: Row) -> Iterator[str]:
    """Pruning, then the parts, the measured branches of a family together."""
    settings = results["settings"]
    for title, branches in (("U-Net", REPORTING), ("transformer", FLOW)):
        measured = [branch for branch in branches if f"{branch} | {NONE}" in settings]
        if not measured:
            continue
        before = [settings[f"{branch} | {NONE}"] for branch in measured]
        yield f"### {title}"
        yield ""
        yield (
            f"{sum(len(row['copied']) for row in before)} pictures of {' and '.join(measured)}; as the models came "
            f"{rate(before)} come back, with a likeness of {mean(before, 'likeness')}."
        )
        lines = []
        for setting in OF_UNET:
            rows = [settings[key] for branch in measured if (key := f"{branch} | {setting}") in settings]
            if len(rows) == len(measured):
                edits = [row["edit"] for row in rows]
                aimed = [row["aimed at ordinary prompts"] for row in rows]
                selected = f"{sum(row['selected'] for row in edits) / len(edits):.0f} {rows[0]['units']}"
                cells = [rate(edits), mean(edits, "likeness"), mean(edits, "quality")]
                beside = [f"{sum(row['selected'] for row in aimed) / len(aimed):.0f}", rate(aimed)]
                lines.append([setting, selected, *cells, *beside, mean(aimed, "quality")])
        head = "setting | units | copies | likeness | ordinary pictures | aimed at ordinary prompts: units | copies"
        head += " | ordinary pictures"
        yield from ("", *table(head, lines))
        lines = []
        for part in parts_of(branches[0]):
            rows = [settings[key] for branch in measured if (key := f"{branch} | part: {part}") in settings]
            if len(rows) == len(measured):
                share = f"{rows[0]['weights']:.0%}"
                lines.append([part, share, rate(rows), mean(rows, "likeness"), mean(rows, "quality")])
        head = "part with the other branch's weights | of all weights | copies | likeness | ordinary pictures"
        yield from ("", *table(head, lines), "")


STUDY = Study(
    title="Pruning, on the panel",
    about="*Copies*: pictures planted a hundred times in the branch and never in the other that come back, one seed. "
    "*Likeness* is the structural similarity of every picture to the planted one, copy or not; *ordinary pictures* "
    "that of ordinary prompts' pictures to those of the model as it came. Settings are the papers'; nothing was "
    "chosen.",
    page=page,
    measure=cases,
)
