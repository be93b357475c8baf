"""Put the measured parts together as docs/results.md.

python benchmarks/page.py
"""

from __future__ import annotations

from pathlib import Path

from common import OUT

from unmemorize.core.run import atomic

HEAD = """# Results

Everything here was measured on the shipped testbed by `make results`; this page is put together from the parts that it
writes in `docs/results/`. Intervals are 95%. Those of rates are exact (Clopper and Pearson) over pictures or prompts,
and over whole families where prompts are related (word families; negatives in families of six); areas under curves and
changes of quality are bootstrapped over clusters of related prompts. Small models show signs and orders of effects;
their values do not carry over to large ones.

Of rows that need a fine-tuned model, which is not shipped, intervals were computed anew on 2026-11-26 from the rates
and the numbers of pictures.
"""
PARTS = {
    "testbed": ("What the models copy", "Every prompt of the plan, two seeds, 16 sampling steps, guidance 7.5."),
    "detection": (
        "Detection",
        "The text-conditional magnitude (Wen et al. 2024) of planted prompts against the negatives, with the control "
        "that sees the text alone. The twin was trained on one pair of a caption and a picture of each entry of the "
        "plan, once: 361 of 971 planted pictures and 361 of 651 captions. Of the verbatim and repeat prompts it "
        "lacks the duplicates and nothing else, and what the score finds there is not memory; most captions of word "
        "and image-only entries and most pictures of templates and caption-only entries it has never seen.",
    ),
    "explanation": (
        "Explanation",
        "Which words a copy needs, by generating the prompt without each of them, and how often each explainer puts "
        "such a word first. A prompt is copied if more than half of four pictures are copies of its own picture; "
        "the copy needs a word if none of the four is one at the same seeds, with the word left out and with an "
        "ordinary prompt's keyword in its place. Planted word: captions of word families whose copy needs the word "
        "that the family shares. Any word: every copied prompt of two words or more that needs one of its words and "
        "not another. The prompt's first word is a control that sees neither model nor picture; the twin has the "
        "same prompts without the memories. The gradient over all steps has two seeds, the others four. Brackets "
        "are exact 95% intervals over families.",
    ),
    "mitigation": (
        "Mitigation at inference",
        "Prompts planted a hundred times or more, two seeds. Targets are multiples of the median of ordinary prompts; "
        "similarity is one minus the distance ratio, a copy is 0.5 or more; alignment is the cosine of picture and "
        "prompt in the testbed's own CLIP.",
    ),
    "pruning": (
        "Pruning",
        "NeMo and Wanda, the memorized prompts at seeds the search never saw, beside two controls: the method aimed "
        "at ordinary prompts, and random edits of equal size and like norms.",
    ),
    "twin-swap": (
        "Where the copies are held",
        "The twin's weights in one part of the planted model at a time: what a method that locates memory should find.",
    ),
    "mitigations": (
        "All mitigations",
        "Put together from the parts below: copies for the prompts, what attacks find, quality and cost.",
    ),
    "audit": ("The quick audit", "`unmemorize audit testbed`, every stage, as it comes."),
    "locality": (
        "Locality",
        "What brings one picture back, from many random starts, on the unpruned model: distances of embeddings and of "
        "activations, and the overlap of what NeMo (without refinement) and Wanda (1%) select. Published values are of "
        "a large model and read off a figure: only which side is higher can be compared.",
    ),
    "attack": (
        "Attacking",
        "The embedding attack (Kowalczuk et al. 2026), every picture judged against its own target.",
    ),
    "erase": (
        "Mitigation in the weights",
        "Fine-tuning, attacked afterwards. Every method has the same pictures, attack and measures of quality.",
    ),
    "untrained": (
        "Mitigation without training",
        "At inference and by pruning, measured as fine-tuning is.",
    ),
    "relearn": (
        "Trained on after erasing",
        "Whether fine-tuning on unrelated pictures brings back what was erased, beside a model that only hides.",
    ),
    "stronger": (
        "Cheaper and dearer attacks",
        "DoRI at high noise against plain DoRI by denoiser evaluations, and the adaptive attack, all beside controls.",
    ),
    "prompt-search": (
        "A prompt, not only an embedding",
        "Words that anybody can type, searched by gradient.",
    ),
    "nemo": ("Speed of NeMo", "The same search, with the same result, as plainly as it can be written."),
    "triggers": (
        "Memory triggers",
        "The data audit of the testbed's own training rows, which is not told what is planted.",
    ),
    "training-filter": (
        "Mitigation in training",
        "The twin, fine-tuned on eight duplicated pictures that make a quarter of every batch.",
    ),
    "detection-speed": ("Speed of detection", "Ratios within one run."),
    "attack-speed": (
        "Speed of the attack",
        "Ratios within one run. The floor is the denoiser's forward and its backward to the embedding.",
    ),
    "data_scale": (
        "Scale of the data audit",
        "Two cores that had other work, too: processor time says more than the clock. Captions with Zipf's word "
        "frequencies, and what was planted.",
    ),
}


def main() -> None:
    parts = [HEAD]
    for name, (title, what) in PARTS.items():
        path = OUT / f"{name}.md"
        if path.exists():
            parts.append(f"## {title}\n\n{what}\n\n{path.read_text(encoding='utf-8')}")
    with atomic(Path("docs/results.md")) as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
