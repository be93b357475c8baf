"""The prompt probe: which words of which prompts make a model copy its training pictures."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from unmemorize.core.choose import evenly
from unmemorize.core.crew import ALONE, Crew
from unmemorize.core.errors import UserError
from unmemorize.core.run import Progress, Run, quiet, read_json, write_json
from unmemorize.core.shards import Row, write_rows
from unmemorize.core.specs import TriggerSpec, limited
from unmemorize.core.text import normalise, spans
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import Prompt
from unmemorize.explain.words import MARGIN, SHARE, Outcome, Variant, measure, variants, word_effects
from unmemorize.stages.inputs import Inputs, prompt_source
from unmemorize.stages.stage import Work, run_task

CONTEXTS = 2  # unrelated prompts a word is moved into
NEUTRAL = ("a photograph of a street", "an oil painting of a river", "a drawing of a chair")


def probe(spec: TriggerSpec, run: Path, progress: Progress = quiet, crew: Crew = ALONE) -> dict[str, Any]:
    """Run or continue a probe in `run`; returns what every word does and leaves it in `triggers.json`.

    Raises:
        UserError: The model, the prompts or the pictures cannot be used, or `run` holds another run.
        Unfinished: Other parts are not done.
    """
    inputs = Inputs.of(spec)
    given = _given(spec, inputs.bundle)
    chosen, tried = _chosen(spec, given), variants_of(spec, inputs.bundle)
    source = prompt_source(inputs.bundle.source("prompts"), chosen)
    record = inputs.record({"prompts": source, "references": inputs.check.source}, inputs.check.criterion)
    with Run.open(run, record) as opened:
        if opened.is_kept:
            return read_json(run / "triggers.json")
        tested = pq.read_table(run_task(probing, inputs, run, progress, crew)).to_pylist()
        rows: list[Row] = []
        for prompt, of_prompt in tried.items():
            rows += [{"prompt": prompt} | dataclasses.asdict(variant) for variant in of_prompt]
        write_rows(run / "variants.parquet", rows)
        outcomes = {row["text"]: Outcome(row["magnitude"], row["copies"], row["seeds"]) for row in tested}
        effects = [dataclasses.asdict(effect) for effect in word_effects(tried, outcomes)]
        result = {
            "triggers": [e for e in effects if e["trigger"]],
            "words": effects,
            "rule": {"share": SHARE, "margin": MARGIN},
            "prompts": len(chosen),
            "prompts_given": len(given),
            "texts": len(outcomes),
            "evaluations": sum(row["evaluations"] for row in tested),
            "copies": sum(row["copies"] for row in tested),
            "mirrored": sum(row["mirrored"] for row in tested),
            "criterion_errors": inputs.check.criterion.said_of_errors,
        }
        write_json(run / "triggers.json", result)
    return result


def probing(inputs: Inputs, run: Path, progress: Progress) -> Work[str]:
    """What every text does, each tried once however many prompts it comes from: `outcomes.parquet`.

    Raises:
        UserError: The prompts cannot be used, or there are no training pictures.
    """
    seeds, check = range(inputs.spec.pictures), inputs.check

    def do(shard: Sequence[str]) -> list[Row]:
        with inputs.model.counted() as cost:
            outcomes = measure(inputs.subject, shard, check.match, seeds=seeds)
        each, more = divmod(cost.forward, len(shard))
        rows = []
        for place, (text, outcome) in enumerate(zip(shard, outcomes, strict=True)):
            rows.append({"text": text} | dataclasses.asdict(outcome) | {"evaluations": each + (place < more)})
        return rows

    return Work("probe", "outcomes.parquet", texts_of(variants_of(inputs.spec, inputs.bundle)), do, size=8)


def variants_of(spec: TriggerSpec, bundle: Bundle) -> dict[str, list[Variant]]:
    """Every variant that a probe tries, by the prompt that it was made from.

    Raises:
        UserError: The prompts cannot be used.
    """
    given = _given(spec, bundle)
    chosen = _chosen(spec, given)
    if not any(_words(prompt.text) for prompt in chosen):
        raise UserError(f"{spec.prompts or spec.model}: no prompt with a word in it: there is nothing to take apart")
    return _variants(chosen, _unrelated(bundle, given), spec.repeats)


def texts_of(tried: Mapping[str, Sequence[Variant]]) -> list[str]:
    """The texts of all variants, each once."""
    texts: dict[str, None] = {}  # keeps the order, which numbers the shards
    for of_prompt in tried.values():
        texts |= dict.fromkeys(variant.text for variant in of_prompt)
    return list(texts)


def _given(spec: TriggerSpec, bundle: Bundle) -> Sequence[Prompt]:
    return bundle.prompts if spec.prompts else [p for p in bundle.prompts if p.kind in ("word", "trigger")]


def _chosen(spec: TriggerSpec, given: Sequence[Prompt]) -> list[Prompt]:
    return [given[i] for i in evenly(len(given), limited(spec.limit, len(given)))]


def _unrelated(bundle: Bundle, given: Sequence[Prompt]) -> list[str]:
    """Prompts that words are moved into, and that random words are drawn from."""
    return [p.text for p in given] if bundle.own is None else bundle.ordinary()


def _words(text: str) -> set[str]:
    return {normalise(text[a:b]) for a, b in spans(text)}


def _variants(chosen: Sequence[Prompt], unrelated: Sequence[str], repeats: int) -> dict[str, list[Variant]]:
    tried = {}
    for prompt in chosen:
        words = _words(prompt.text)
        disjoint = [text for text in unrelated if not words & _words(text)]
        pool = sorted(set().union(*map(_words, disjoint)))
        seed = zlib.crc32(prompt.text.encode())  # the same draw in whichever file the prompt stands
        drawn = np.random.default_rng(seed).permutation(len(disjoint))[:CONTEXTS]
        contexts = [*(disjoint[i] for i in drawn), *NEUTRAL][:CONTEXTS]
        tried[prompt.text] = variants(prompt.text, contexts=contexts, pool=pool, repeats=repeats, seed=seed)
    return tried
