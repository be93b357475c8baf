"""Where the copies are held: the twin's weights in one part of the planted model at a time.

    python benchmarks/twin_swap.py

The twin was trained from the same trunk without the duplicates. Where its weights in a part take the copies away, the
part is needed for them; where copies stay, it is not. Both models moved in training, so that an exchange damages
ordinary pictures, too: read the quality beside the copies. Writes docs/results/twin-swap.{json,md}. A part that is
already in the JSON, for the same models and options, is not measured again.
"""

from __future__ import annotations

from collections.abc import Callable

from common import OUT, Row, kept, table, write
from pruning import prepare, rates
from torch import Tensor

from unmemorize.core.run import write_json
from unmemorize.mitigate.tuned import Tuned
from unmemorize.models.load import load

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


def main() -> None:
    bench, twin = prepare(), load("testbed-twin")
    same = {"fingerprint": bench.hashed, "twin": twin.fingerprint, "seeds": list(bench.seeds)}
    results = kept("twin-swap", same)
    ours = {name: value.detach() for name, value in bench.model.denoiser.named_parameters()}
    theirs = {name: value.detach() for name, value in twin.denoiser.named_parameters()}
    free = bench.pictures(bench.ordinary)
    for name, inside in PARTS.items():
        if name not in results["settings"]:
            part = {key: value for key, value in theirs.items() if inside(key)}
            sizes = {"weights": share(part, ours), "moved": moved(part, ours) / moved(theirs, ours)}
            change = [Tuned("testbed-twin", twin.fingerprint, part)]
            results["settings"][name] = sizes | bench.copies(change) | bench.quality(free, change)
            write_json(OUT / "twin-swap.json", results)
    write("twin-swap", results, page(results["settings"], len(bench.memorized), len(bench.seeds)))


def page(settings: dict[str, Row], prompts: int, seeds: int) -> list[str]:
    """The numbers as a page."""
    rows = [
        [name, f"{r['weights']:.0%}", f"{r['moved']:.0%}", rates(r), f"{r['ratio']:.2f}", f"{r['quality']:.2f}"]
        for name, r in settings.items()
    ]
    head = ["twin's weights in", "share of weights", "share of squared difference", "copy rate", "ratio", "quality"]
    about = f"{prompts} memorized prompts, {seeds} seeds; quality: SSIM of ordinary pictures to the planted model's."
    return [about, "", *table(head, rows)]


if __name__ == "__main__":
    main()
