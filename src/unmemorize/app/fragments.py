"""What the page shows, as HTML. Prompts, captions and file names are hostile text: all of them go through `_text`."""

from __future__ import annotations

import base64
import html
from bisect import bisect_left
from collections.abc import Sequence

from torch import Tensor

from unmemorize.core.results import Explanation
from unmemorize.data.pictures import png
from unmemorize.stages.inspect import FALSE_ALARMS, Inspector, Picture, Pictures, Score

SCALE = 2.5  # the gauge ends at this many thresholds
VERDICTS = {"verbatim": "verbatim copy", "template": "copy of a template", "none": "no copy"}


def heading(inspector: Inspector) -> str:
    """The top of the page."""
    spec, many = inspector.spec, len(inspector.ordinary)
    pictures = "none known" if inspector.references is None else f"{len(inspector.references.names)}"
    return f"""<header><p class="eyebrow"><b>unmemorize</b> inspecting <span class="name">{_text(spec.model)}</span></p>
<h1>Adjust a prompt until it copies nothing</h1>
<p class="meta">{spec.seeds} seeds, {spec.steps} sampling steps; calibrated on {many} ordinary prompts; training
pictures to compare with: {pictures}.</p></header>"""


def verdict(score: Score | None, inspector: Inspector) -> str:
    """The score as a sentence, a number and a gauge."""
    if score is None:
        return '<p class="hint">Type a prompt and press Enter.</p>'
    level, side = ("over", "above") if score.memorized else ("under", "not above")
    title = "Looks memorized" if score.memorized else "Looks ordinary"
    advice = (
        "A high score is a suspicion: only a picture that matches proves it."
        if score.memorized
        else "A low score clears nothing by itself: look at the pictures."
    )
    return f"""<section class="verdict {level}" role="status" aria-label="Verdict">
<h2>{title}</h2>
<p class="number"><b>{score.mean:.2f}</b> <span>{side} the threshold {score.threshold:.2f}</span></p>
{_gauge(score.mean, inspector)}
<p class="meta">Higher than {_share_below(score.mean, inspector.ordinary)}; at most {100 * FALSE_ALARMS:g}% of such
prompts are above the threshold. {advice}</p></section>"""


def _share_below(value: float, ordinary: Sequence[float]) -> str:
    below, many = bisect_left(ordinary, value), len(ordinary)
    return f"all {many} ordinary prompts" if below == many else f"{100 * below // many}% of {many} ordinary prompts"


def _gauge(value: float, inspector: Inspector) -> str:
    end = SCALE * inspector.threshold

    def place(score: float) -> str:
        return f"{100 * min(score / end, 1):.1f}%"

    last = len(inspector.ordinary) - 1
    low, high = inspector.ordinary[round(0.05 * last)], inspector.ordinary[round(0.95 * last)]
    return f"""<div class="gauge" role="meter" aria-label="Score" aria-valuemin="0" aria-valuemax="{end:.2f}"
 aria-valuenow="{min(value, end):.2f}" aria-valuetext="{value:.2f}, threshold {inspector.threshold:.2f}">
<i class="fill" style="width:{place(value)}"></i><i class="limit" style="left:{place(inspector.threshold)}"></i></div>
<p class="scale" aria-hidden="true"><i style="left:{place(low)};right:calc(100% - {place(high)})"></i>
<span class="ends" style="left:{place(high)}">ordinary</span>
<span style="left:{place(inspector.threshold)}">threshold</span></p>"""


def words(explanation: Explanation | None) -> str:
    """The words of a prompt, each with its significance as colour, bar and number."""
    if explanation is None:
        return ""
    most = max((*explanation.significance, 1e-12))
    top = max(range(len(explanation.words)), key=explanation.significance.__getitem__)
    items = "".join(
        _word(word, value, value / most, index == top and len(explanation.words) > 1)
        for index, (word, value) in enumerate(zip(explanation.words, explanation.significance, strict=True))
    )
    special = ", ".join(f"{name} {_small(value)}" for name, value in explanation.special.items())
    return f"""<section class="words" aria-label="Words"><h2>Words</h2><ol>{items}</ol>
<p class="meta">How steeply the score rises with each word: change the most significant one first. Not words: {special};
where these are larger, the numbers of the words say little.</p>
</section>"""


def _word(word: str, value: float, share: float, first: bool) -> str:
    note = "<em>most</em>" if first else ""
    return f"""<li class="{"most" if first else ""}"><span class="word" style="--share:{share:.3f}">{_text(word)}</span>
<span class="value">{_small(value)}{note}</span></li>"""


def history(tried: Sequence[Score]) -> str:
    """The prompts tried so far."""
    if not tried:
        return ""
    least = min(score.mean for score in tried)
    rows = "".join(_tried(score, score.mean == least and len(tried) > 1) for score in tried)
    return f"""<section class="tried"><h2>Tried so far</h2><table><thead><tr><th scope="col">Prompt</th>
<th scope="col">Score</th><th scope="col">Verdict</th></tr></thead><tbody>{rows}</tbody></table></section>"""


def _tried(score: Score, least: bool) -> str:
    level, title = ("over", "looks memorized") if score.memorized else ("under", "looks ordinary")
    return f"""<tr class="{level}"><td>{_text(score.prompt)}</td><td><b>{score.mean:.2f}</b>
{'<span class="badge">lowest</span>' if least else ""}</td><td><span class="badge {level}">{title}</span></td></tr>"""


def gallery(plain: Pictures | None, guarded: Pictures | None, where: str = "") -> str:
    """The pictures of a prompt beside their nearest training pictures, without and with the guard.

    `where` names what maps are by, which stand beside those without.
    """
    if plain is None:
        return ""
    panels = _panel("Without the guard", plain, where)
    if guarded is not None:
        panels += _panel("With the guard", guarded, where)
    return f"""<section class="gallery" aria-label="Pictures"><h2>Pictures of “{_text(plain.prompt)}”</h2>
<div class="panels{"" if guarded is None else " two"}">{panels}</div></section>"""


def _panel(title: str, drawn: Pictures, where: str) -> str:
    copies = sum(picture.copied for picture in drawn.pictures)
    many = len(drawn.pictures)
    if drawn.pictures[0].nearest is None:
        line = "No training pictures are known: name their folder with <code>--references</code>."
    else:
        line = f"<b>{copies} of {many}</b> {'is a copy' if copies == many == 1 else 'are copies'} of training pictures."
    pairs = "".join(_pair(picture, note, where) for picture, note in zip(drawn.pictures, _notes(drawn), strict=True))
    return f"""<div class="panel {"over" if copies else "under"}"><h3>{title}</h3><p>{line}{_acted(drawn)}</p>
<div class="pairs">{pairs}</div></div>"""


def _acted(drawn: Pictures) -> str:
    if drawn.outcome is None:
        return ""
    count = sum(drawn.outcome.acted)
    limit = f"{drawn.outcome.limits.threshold:.2f}"
    if not count:
        return f" The guard did not act: no picture's magnitude is above {limit}, so they are the same to the last bit."
    return f" The guard acted on {count}, whose magnitude is above {limit}."


def _notes(drawn: Pictures) -> list[str]:
    if drawn.outcome is None:
        return [""] * len(drawn.pictures)
    seen = zip(drawn.outcome.acted, drawn.outcome.before, drawn.outcome.after, strict=True)
    return [f"magnitude {b:.2f} → {a:.2f}" if acted else f"magnitude {b:.2f}, left alone" for acted, b, a in seen]


def _pair(picture: Picture, note: str, where: str) -> str:
    generated = _figure(picture.image, "made", f"Made by the model, seed {picture.seed}", f"seed {picture.seed}")
    mapped = "" if picture.map is None else " mapped"
    if picture.map is not None:
        description = f"Map of seed {picture.seed}: bright where its memory shows"
        generated += _figure(picture.map, "map", description, f"where: {html.escape(where)}")
    if picture.nearest is None:
        return f'<div class="pair{mapped}">{generated}<p class="meta">{note}</p></div>'
    match, name = picture.nearest.match, picture.nearest.caption or picture.nearest.match.nearest
    nearest = _figure(picture.nearest.image, "nearest", f"Nearest training picture: {name}", "nearest")
    mirrored = ", mirrored" if match.mirrored else ""
    badge = f'<span class="badge {match.verdict}">{VERDICTS[match.verdict]}{mirrored}</span>'
    return f"""<div class="pair{mapped}{" copied" if picture.copied else ""}">{generated}{nearest}
<p>{badge} <span class="meta">ratio {match.value:.2f}</span></p><p class="meta">nearest: {_text(name)}</p>
{f'<p class="meta">{note}</p>' if note else ""}</div>"""


def _figure(image: Tensor, kind: str, description: str, caption: str) -> str:
    data = base64.b64encode(png(image)).decode()
    alt = html.escape(description)
    return f"""<figure class="{kind}"><img src="data:image/png;base64,{data}" alt="{alt}">
<figcaption>{caption}</figcaption></figure>"""


def _small(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.2f}"


def _text(value: str) -> str:
    return f"<bdi>{html.escape(value)}</bdi>"
