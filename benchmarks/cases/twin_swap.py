"""Where the copies are held: the twin's weights in one part of the planted model at a time.

The twin was trained from the same trunk without the duplicates. Where its weights in a part take the copies away, the
part is needed for them; where copies stay, it is not. Both models moved in training, so that an exchange damages
ordinary pictures, too: read the quality beside the copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from changed import bench_of, rates
from harness import Cases, Options, Row, Study, table
from torch import Tensor

from unmemorize.mitigate.tuned import Tuned
from unmemorize.models.load import load

PROMPTS = 18
PARTS: dict[str, Callable[[str], bool]] = {
    "nothing": lambda name: False,
    "second feed-forward layers (`ff.net.2`), which Wanda prunes": lambda name: ".ff.net.2." in name,
    "cross-attention values (`attn2.to_v`), which NeMo prunes": lambda name: ".attn2.to_v." in name,
    "cross-attention keys and values": lambda name: ".attn2.to_v." in name or ".attn2.to_k." in name,
    "feed-forward layers": lambda name: ".ff." in name,
    "attention and feed-forward layers": lambda name: ".transformer_blocks." in name,
    "residual blocks": lambda name: ".resnets." in name,
}


def share(part: dict[str, Tensor], whole: dict[str, Tensor]) -> float:
    """How many of the weights are in a part."""
    return sum(value.numel() for value in part.values()) / sum(value.numel() for value in whole.values())


def moved(part: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """Σ (twin − planted)² over a part."""
    return sum(float((value - ours[name]).square().sum()) for name, value in part.items())


def cases(options: Options) -> Cases:
    """Every part."""
    bench, twin = bench_of(PROMPTS), load("testbed-twin")
    ours, theirs = ({k: v.detach() for k, v in m.denoiser.named_parameters()} for m in (bench.model, twin))
    free = bench.pictures(bench.ordinary)

    def measure(inside: Callable[[str], bool], rows: Row) -> Row:
        part = {key: value for key, value in theirs.items() if inside(key)}
        sizes = {"weights": share(part, ours), "moved": moved(part, ours) / moved(theirs, ours)}
        change = [Tuned("testbed-twin", twin.fingerprint, part)]
        return sizes | bench.copies(change) | bench.quality(free, change)

    same = {"fingerprint": bench.model.fingerprint, "twin": twin.fingerprint, "seeds": list(bench.seeds)}
    return Cases(same, {name: partial(measure, inside) for name, inside in PARTS.items()})


def page(results: Row) -> Iterator[str]:
    """What is left under each part."""
    seeds = len(results["seeds"])
    yield f"{PROMPTS} memorized prompts, {seeds} seeds; quality: SSIM of ordinary pictures to the planted model's."
    rows = []
    for name, r in results["settings"].items():
        cells = [f"{r['weights']:.0%}", f"{r['moved']:.0%}", rates(r), f"{r['ratio']:.2f}", f"{r['quality']:.2f}"]
        rows.append([name, *cells])
    head = "twin's weights in | share of weights | share of squared difference | copy rate | ratio | quality"
    yield from ("", *table(head, rows))


STUDY = Study(
    title="Where the copies are held",
    about="The twin's weights in one part of the planted model at a time: what a method that locates memory should "
    "find.",
    page=page,
    measure=cases,
)
