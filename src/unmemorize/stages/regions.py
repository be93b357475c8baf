"""Where in the generated pictures their memory shows: a map beside each, by an explainer of regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from unmemorize.core.methods import Explainer, parse
from unmemorize.core.results import Regions
from unmemorize.core.run import Progress
from unmemorize.core.sample import sampling_evaluations
from unmemorize.core.shards import Row
from unmemorize.core.specs import limited
from unmemorize.data.pictures import save_image
from unmemorize.data.source import Prompt
from unmemorize.stages.explain import brightness, in_order
from unmemorize.stages.inputs import Inputs, NotRun
from unmemorize.stages.stage import Cost, Stage, Work, in_shards
from unmemorize.stages.verify import copied_rows


def mapping(inputs: Inputs, run: Path, progress: Progress) -> Work[Prompt]:
    """A PNG in `maps/` for every picture of the explained prompts, and `scores/regions.parquet` that names them.

    Raises:
        NotRun: No such method is asked for.
    """
    spec, subject = inputs.spec, inputs.subject
    if not spec.regions:
        raise NotRun("no method that says where in pictures was asked for: name one with --regions")
    explainer: Explainer = parse("explainer", spec.regions)
    generated = set(pq.read_table(run / "scores" / "images.parquet")["id"].to_pylist())
    prompts = [prompt for prompt in in_order(inputs, run, copied_rows(run)) if prompt.id in generated]
    seeds = range(spec.seed, spec.seed + spec.pictures)

    def do(shard: Sequence[Prompt]) -> list[Row]:
        rows: list[Row] = []
        for prompt in shard:
            regions = explainer.explain(subject, prompt.text, seeds=seeds)
            assert isinstance(regions, Regions)  # it says regions
            maps = brightness(regions.maps, inputs.model.image_size)
            spent = regions.evaluations / len(seeds)
            for seed, shown in zip(seeds, maps, strict=True):
                name = f"maps/{prompt.id}-{seed}.png"
                save_image(shown, run / name)
                rows.append({"id": prompt.id, "seed": seed, "map": name, "evaluations": spent})
        return rows

    return Work("regions", "scores/regions.parquet", prompts[: limited(spec.explain, len(prompts))], do, size=4)


def _cost(inputs: Inputs) -> Cost:
    """What sampling takes; a method that evaluates more than it samples costs more."""
    spec = inputs.spec
    if not spec.regions:
        return Cost()
    pictures = limited(spec.explain, limited(spec.generate, len(inputs.prompts))) * spec.pictures
    return Cost(pictures * sampling_evaluations(inputs.model, inputs.subject.sampler))


REGIONS = Stage("regions", "regions", in_shards(mapping), _cost)
