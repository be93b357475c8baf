"""The prompt probe: which words of which prompts make a model copy its training pictures."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unmemorize.core.choose import evenly
from unmemorize.core.model import DiffusionModel
from unmemorize.core.run import Progress, Run, quiet, write_json
from unmemorize.core.shards import merge_shards, run_shards, write_rows
from unmemorize.core.specs import TriggerSpec, limited
from unmemorize.core.text import normalise, spans
from unmemorize.data.bundle import Bundle
from unmemorize.data.source import Prompt
from unmemorize.explain.words import MARGIN, SHARE, Outcome, Variant, measure, variants, word_effects
from unmemorize.stages.inputs import bundle_of, load_as_asked, prompt_source, record_of, subject_of, with_sampling
from unmemorize.study.copies import CopyCheck, copy_check

CONTEXTS = 2  # unrelated prompts a word is moved into
NEUTRAL = ("a photograph of a street", "an oil painting of a river", "a drawing of a chair")


def probe(spec: TriggerSpec, run: Path, progress: Progress = quiet) -> dict[str, Any]:
    """Run or continue a probe in `run`; returns what every word does and leaves it in `triggers.json`.

    Raises:
        UserError: The model, the prompts or the pictures cannot be used, or `run` holds another run.
    """
    bundle = bundle_of(spec)
    given = _given(spec, bundle)
    chosen = _chosen(spec, given)
    model = load_as_asked(spec)
    spec = with_sampling(spec, model)
    references = bundle.references(model.image_size)
    copied = copy_check(model, references, bundle.source("references"), spec.sscd, spec.recipe)
    tried = _variants(chosen, _unrelated(bundle, given), spec.repeats)
    data = {"prompts": prompt_source(bundle.source("prompts"), chosen), "references": copied.source}
    with Run.open(run, record_of(spec, model, data, copied.criterion)), model.counted() as cost:
        outcomes = _measure(model, tried, copied, spec, run, progress)
        effects = [dataclasses.asdict(effect) for effect in word_effects(tried, outcomes)]
        result = {
            "triggers": [e for e in effects if e["trigger"]],
            "words": effects,
            "rule": {"share": SHARE, "margin": MARGIN},
            "prompts": len(chosen),
            "prompts_given": len(given),
            "texts": len(outcomes),
            "evaluations": cost.forward,
        }
        write_json(run / "triggers.json", result)
    return result


def texts_of(spec: TriggerSpec) -> list[str]:
    """Every text that a probe tries.

    Raises:
        UserError: The prompts cannot be used.
    """
    bundle = bundle_of(spec)
    given = _given(spec, bundle)
    return _texts(_variants(_chosen(spec, given), _unrelated(bundle, given), spec.repeats))


def _texts(tried: dict[str, list[Variant]]) -> list[str]:
    """The texts of all prompts, each once."""
    return list(dict.fromkeys(v.text for found in tried.values() for v in found))


def _given(spec: TriggerSpec, bundle: Bundle) -> list[Prompt]:
    return bundle.prompts if spec.prompts else [p for p in bundle.prompts if p.kind == "word"]


def _chosen(spec: TriggerSpec, given: Sequence[Prompt]) -> list[Prompt]:
    return [given[i] for i in evenly(len(given), limited(spec.limit, len(given)))]


def _unrelated(bundle: Bundle, given: Sequence[Prompt]) -> list[str]:
    """Prompts that words are moved into, and whose words are the random ones."""
    return [p.text for p in given] if bundle.own is None else bundle.ordinary()


def _words(text: str) -> set[str]:
    return {normalise(text[a:b]) for a, b in spans(text)}


def _variants(chosen: Sequence[Prompt], unrelated: Sequence[str], repeats: int) -> dict[str, list[Variant]]:
    tried = {}
    for prompt in chosen:
        own = _words(prompt.text)
        others = [text for text in unrelated if not own & _words(text)]
        pool = sorted({word for text in others for word in _words(text)})
        seed = zlib.crc32(prompt.text.encode())  # the same draw in whichever file the prompt stands
        order = np.random.default_rng(seed).permutation(len(others))
        contexts = [*(others[i] for i in order[:CONTEXTS]), *NEUTRAL][:CONTEXTS]
        tried[prompt.text] = variants(prompt.text, contexts=contexts, pool=pool, repeats=repeats, seed=seed)
    return tried


def _measure(
    model: DiffusionModel,
    tried: dict[str, list[Variant]],
    copied: CopyCheck,
    spec: TriggerSpec,
    run: Path,
    progress: Progress,
) -> dict[str, Outcome]:
    """The outcome of every text, each tried once however many prompts it comes from."""
    texts = _texts(tried)
    subject = subject_of(spec, model)

    def work(shard: Sequence[str]) -> list[dict[str, Any]]:
        outcomes = measure(subject, shard, copied, seeds=range(spec.pictures))
        return [{"text": text} | dataclasses.asdict(outcome) for text, outcome in zip(shard, outcomes, strict=True)]

    for done in run_shards(texts, work, folder=run / "shards" / "probe", size=8):
        progress("probe", done, len(texts))
    table = merge_shards(run / "shards" / "probe", run / "outcomes.parquet")
    rows = [{"prompt": p} | dataclasses.asdict(v) for p, found in tried.items() for v in found]
    write_rows(run / "variants.parquet", rows)
    return {row["text"]: Outcome(row["magnitude"], row["copies"], row["seeds"]) for row in table.to_pylist()}
