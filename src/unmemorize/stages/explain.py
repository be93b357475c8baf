"""Which words of a prompt carry its memory, or where in its pictures it shows, and copies without the first word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unmemorize.core.batches import decoded
from unmemorize.core.errors import NotApplicable, UserError
from unmemorize.core.methods import Explainer, Subject, methods, parse
from unmemorize.core.model import DiffusionModel
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.results import Explanation, Match, Regions
from unmemorize.core.run import Progress
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.shards import Row
from unmemorize.core.specs import ExplainSpec, limited
from unmemorize.data.pictures import save_image
from unmemorize.data.source import Prompt
from unmemorize.explain.leave_one_out import LeaveOneOut
from unmemorize.explain.tokens import rank_agreement
from unmemorize.explain.words import measure, occurrences, without
from unmemorize.stages.inputs import Inputs, scores_of
from unmemorize.stages.stage import COPIED, Cost, Stage, Work, in_shards
from unmemorize.stages.verify import copied_rows, reference_name
from unmemorize.study.copies import CopyCheck

SPECIAL = ("begin", "end", "padding")  # tokens that are no words


def explain(spec: ExplainSpec, out: Path) -> Row:
    """The value of every word and special token of the prompt, or a folder of its pictures with a map of each.

    Raises:
        UserError: The prompt holds no word, the folder is not empty, or the model or the method cannot be used.
    """
    explainer, prompt = explainer_of(spec), spec.prompt
    if explainer.says == "regions":
        check_outputs([Output("--out", out, "new")])
    subject = Inputs.of(spec).subject
    explanation = explainer.explain(subject, prompt, seeds=spec.numbers)
    if isinstance(explanation, Regions):
        pictures = _write(subject.model, explanation, spec.numbers, out)
        return {"method": explainer.name, "pictures": pictures, "evaluations": explanation.evaluations}
    words: list[Row] = []
    for word, value in zip(explanation.words, explanation.significance, strict=True):
        words.append({"word": word, "significance": value})
    result: Row = {"method": explainer.name, "words": words}
    result |= {"special": explanation.special, "evaluations": explanation.evaluations}
    if spec.check:
        second = LeaveOneOut().explain(subject, prompt, seeds=spec.numbers)
        for row, value in zip(words, second.significance, strict=True):
            row["magnitude_lost_without"] = value
        result["rank_agreement"] = rank_agreement(explanation.significance, second.significance)
        result["evaluations"] += second.evaluations
    return result


def explainer_saying(option: str, text: str, says: str) -> Explainer:
    """The explainer that an option names, which has to say words, or regions.

    Raises:
        UserError: There is no such method or setting, or it says the other.
    """
    explainer: Explainer = parse("explainer", text)
    if explainer.says != says:
        known = methods("explainer").items()
        able = [name for name, cls in known if issubclass(cls, Explainer) and cls.says == says]
        raise UserError(f"{option} {text}: it does not say {says}: choose one of {', '.join(able)}")
    return explainer


def explainer_of(spec: ExplainSpec) -> Explainer:
    """The explainer that the settings name.

    Raises:
        UserError: The prompt holds no word, or the method cannot be used, or not with `check`.
    """
    if not spec.prompt.strip():
        raise UserError("the prompt is empty: name one with at least a word")
    explainer: Explainer = parse("explainer", spec.method)
    if explainer.says == "regions" and spec.check:
        raise UserError(f"--check is about words, {explainer.name} about places in pictures: leave one of them out")
    return explainer


def _write(model: DiffusionModel, regions: Regions, seeds: Sequence[int], out: Path) -> list[Row]:
    """Each picture and its map, in files of one name."""
    pictures = decoded(model, regions.latents.to(model.device)).float().cpu()
    rows: list[Row] = []
    for seed, picture, shown in zip(seeds, pictures, brightness(regions.maps, pictures.shape[2:]), strict=True):
        image, beside = out / f"{seed}.png", out / f"{seed}-map.png"
        save_image(picture, image)
        save_image(shown, beside)
        rows.append({"seed": seed, "image": str(image), "map": str(beside)})
    return rows


def brightness(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (n, h, w) as grey pictures (n, 3, *size): a place is as bright as its share of the map's highest value."""
    highest = maps.amax(dim=(1, 2), keepdim=True)
    shares = maps / highest.clamp(min=torch.finfo(highest.dtype).tiny)
    return interpolate(shares[:, None].float(), list(size)).expand(-1, 3, -1, -1)


def explaining(inputs: Inputs, run: Path, progress: Progress) -> Work[Prompt]:
    """The words of each chosen prompt, their significance, and copies without the first: `scores/explain.parquet`.

    Raises:
        NotApplicable: No prompt holds a word.
    """
    spec, prompts, subject, seeds = inputs.spec, inputs.prompts, inputs.subject, inputs.spec.numbers
    explainer: Explainer = parse("explainer", spec.explainer)
    copied = copied_rows(run)
    copies = _copies(inputs, copied)
    chosen = in_order(inputs, run, copied)[: limited(spec.explain, len(prompts))]
    worded = [prompt for prompt in chosen if prompt.text.strip()]
    if not worded:
        raise NotApplicable("no prompt holds a word")

    def do(shard: Sequence[Prompt]) -> list[Row]:
        rows = []
        for prompt in shard:
            with subject.model.counted() as cost:
                explanation = explainer.explain(subject, prompt.text, seeds=seeds)
                assert isinstance(explanation, Explanation)  # it says words
                row = _row(prompt.id, explanation)
                if prompt.id in copies and len(explanation.words) > 1:
                    row |= _omission(subject, explanation, seeds, copies[prompt.id])
            rows.append(row | {"evaluations": cost.forward})
        return rows

    return Work("explain", "scores/explain.parquet", worded, do, size=4)


def in_order(inputs: Inputs, run: Path, copied: Sequence[Row]) -> list[Prompt]:
    """The prompts in the order in which they are explained: those that gave the copies, then those of high score."""
    prompts = inputs.prompts
    means = scores_of(run, len(prompts)).mean(axis=1)
    first = {row["id"] for row in copied}
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i].id not in first, -means[i]))
    return [prompts[i] for i in order]


def _omission(
    subject: Subject, explanation: Explanation, seeds: Sequence[int], match: Callable[[Tensor], list[Match]]
) -> Row:
    """The word of highest significance, and copies among the pictures of the prompt with and without it."""
    prompt = explanation.prompt
    omitted = max(range(len(explanation.words)), key=explanation.significance.__getitem__)
    shortened = without(prompt, occurrences(prompt, explanation.spans[omitted]))
    whole, without_word = measure(subject, [prompt, shortened], match, seeds=seeds)
    copies = {"copies_with": whole.copies, "copies_without": without_word.copies}
    return {"omitted": omitted, "pictures": len(seeds)} | copies


def _row(name: str, explanation: Explanation) -> Row:
    starts = [start for start, _ in explanation.spans]
    stops = [stop for _, stop in explanation.spans]
    row: Row = {"id": name, "starts": starts, "stops": stops, "significance": list(explanation.significance)}
    row |= dict.fromkeys(SPECIAL) | explanation.special
    return row | dict.fromkeys(("omitted", "pictures", "copies_with", "copies_without"))


def _copies(inputs: Inputs, rows: Sequence[Row]) -> dict[str, Callable[[Tensor], list[Match]]]:
    """By prompt: the comparison of some pictures with the one that the prompt's first copy is one of."""
    if not rows:
        return {}
    check = inputs.check
    place = {reference_name(name): i for i, name in enumerate(check.references.names)}
    nearest: dict[str, str] = {}
    for row in rows:
        nearest.setdefault(row["id"], row["nearest"])
    return {key: partial(_beside, check, place[name]) for key, name in nearest.items()}


def _beside(check: CopyCheck, target: int, images: Tensor) -> list[Match]:
    return check.against(images, check.references[[target] * len(images)])


def _cost(inputs: Inputs) -> Cost:
    """What it costs if a third of the generated prompts give copies: these are generated with and without a word."""
    spec, prompts = inputs.spec, len(inputs.prompts)
    explained, seeds = limited(spec.explain, prompts), spec.seeds
    evaluations, pictures = 2 * seeds * explained, 0
    if inputs.bundle.has("references"):
        copied = min(explained, max(limited(spec.generate, prompts) // COPIED, 1))
        pictures = 2 * seeds * copied
        calls = sampling_evaluations(inputs.model, inputs.subject.sampler)
        evaluations += pictures * calls + 3 * seeds * copied  # the last are the magnitudes of both texts
    return Cost(evaluations, gradients=seeds * explained, pictures=pictures)


EXPLAIN = Stage("explain", "explain", in_shards(explaining), _cost)
