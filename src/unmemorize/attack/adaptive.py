"""The adaptive attack: many starts, searched long in two ways, ten times DoRI's cost, and of all what comes closest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmemorize.attack.dori import ROWS, Dori
from unmemorize.attack.high_noise import FromNoise, HighNoise
from unmemorize.core.bounds import Count
from unmemorize.core.methods import SAMPLING, Acts, Attack, Subject, method
from unmemorize.core.model import Condition, joined
from unmemorize.core.results import Found
from unmemorize.core.sample import Sampler, generators, sample


@method(
    "adaptive",
    paper="ours; the searches are those of Kowalczuk et al. 2026",
    cost="4,000 evaluations a picture, ten times what DoRI takes",
    needs=("gradients", "pictures", "ordinary"),
)
@dataclass(frozen=True)
class Adaptive(Attack):
    """Search long from many starts, in two ways, and keep the embedding whose samples are nearest to the picture.

    The candidates are all starts and all that the searches end with. Each is sampled with a few steps, at seeds of its
    own, and its distance is the mean over these samples to the picture's latent. Where a mitigation acts on sampling,
    the subject's own sampler is used instead: the searches do not see the mitigation, but the choice among candidates
    does.

    A picture is searched from its own prompt twice, two draws from N(0, I), and prompts of ordinary and of other
    pictures. Every second start is searched by the other loss: what a defence hides from one may show in the other.

    Paper: the search is DoRI's (Kowalczuk et al. 2026).

    Attributes:
        updates: Updates of each search.
        sampling: Sampling steps of a check, where nothing acts on sampling.
        guidance: Guidance scale of such a check.
        ways: The searches, which starts take in turn.
        seeds: Seeds of a check. They have to differ from those that copies are judged on: the best of many tries looks
            like success.
        starts: How many starts are searched, in this order: the own prompt, N(0, I), an ordinary prompt, another
            picture's, each twice. Two are the own prompt in both ways, at a quarter of the cost.
        pools: Prompts to start from beside the picture's own, one of each pool.
    """

    meets: ClassVar[frozenset[Acts]] = SAMPLING | {"weights"}

    updates: Count = 186
    sampling: Count = 8
    guidance: float = 7.5
    ways: tuple[Dori, ...] = (HighNoise(), FromNoise())
    seeds: tuple[int, ...] = (7001, 7002, 7003, 7004)
    starts: Count = 8
    pools: tuple[Condition, ...] = field(default=(), compare=False, repr=False)

    def prepared(self, prompts: Condition, ordinary: Condition) -> Adaptive:
        """The attack with more starts: for either search an ordinary prompt and another picture's."""
        return replace(self, pools=(ordinary, ordinary, prompts, prompts))

    def attack(
        self,
        subject: Subject,
        latents: Tensor,
        start: Condition,
        *,
        seeds: Sequence[int],
        keep: Collection[int] = (),
    ) -> Found:
        """Search for every picture; in place of losses its distance, (1, n). On the way only the start is kept."""
        starts = mixed(start, self.pools, seeds=seeds)[: self.starts]
        result = self.search(subject, latents, starts, seeds=seeds)
        return replace(result, conditions={0: start} | result.conditions)

    def search(
        self,
        subject: Subject,
        latents: Tensor,
        starts: Sequence[Condition],
        *,
        seeds: Sequence[int],
        rows: int = ROWS,
    ) -> Found:
        """`attack` from given starts, each with one row a picture."""
        model, ends = subject.model, list(starts)
        with model.counted() as cost:
            for turn, search in enumerate(self.ways[: len(starts)]):
                chosen = list(range(len(starts)))[turn :: len(self.ways)]
                streams: list[int] = []
                for seed in seeds:
                    streams += [seed * 1000 + k for k in chosen]
                each = latents.repeat_interleave(len(chosen), dim=0)
                start = _by_picture([starts[k] for k in chosen])
                longer = replace(search, updates=self.updates)
                last = longer.attack(subject, each, start, seeds=streams, rows=rows).last
                for place, k in enumerate(chosen):
                    ends[k] = last[slice(place, None, len(chosen))]
            candidates = _by_picture([*starts, *ends])
            near, best = self._distances(subject, latents, candidates, rows).min(dim=1)
        chosen_rows = torch.arange(len(latents)) * (len(starts) + len(ends)) + best.cpu()
        return Found({self.updates: candidates[chosen_rows]}, near[None], cost.forward)

    def _checking(self, subject: Subject) -> Sampler:
        """The sampler of a check: one of few steps, unless a mitigation acts in the subject's own.

        Limits of a guard hold for the steps that they were measured at.
        """
        acted_on = type(subject.sampler) is not Sampler
        return subject.sampler if acted_on else Sampler(self.sampling, self.guidance)

    def _distances(self, subject: Subject, latents: Tensor, cond: Condition, rows: int) -> Tensor:
        """Root mean square distance of each candidate's samples to the picture, over the check's seeds: (n, k)."""
        n, checks = len(latents), len(self.seeds)
        k = len(cond) // n
        each, seeds = cond.repeat(checks), self.seeds * (n * k)
        targets = latents.repeat_interleave(k * checks, dim=0)
        # Guidance gives the denoiser two rows a picture.
        sampler, batch = self._checking(subject), max(rows // 2, 1)
        samples = sample(subject.model, each, seeds=seeds, sampler=sampler, batch=batch)
        distances: Tensor = (samples - targets).square().mean(dim=(1, 2, 3)).sqrt()
        return distances.reshape(n, k, checks).mean(dim=2)


def _by_picture(parts: Sequence[Condition]) -> Condition:
    """Conditions with one row a picture each: all rows of the first picture, then of the second."""
    order = torch.arange(len(parts) * len(parts[0])).reshape(len(parts), -1).T.flatten()
    return joined(parts)[order]


def mixed(own: Condition, pools: Sequence[Condition], *, seeds: Sequence[int]) -> list[Condition]:
    """Starts for each picture: its own prompt twice, two draws from N(0, I), and one prompt of every pool.

    Each kind of start comes twice in a row, because `Adaptive` searches every second start at high noise and the others
    from noise: the own prompt has to be searched in both ways. Name a pool twice for the same reason.

    Args:
        own: The pictures' own prompts, one row a picture.
        pools: Encoded prompts to draw from.
        seeds: One a picture.

    Returns:
        4 + pools conditions with one row a picture.
    """
    normal, numbers = [], []
    for stream in generators(seeds):
        normal.append(torch.randn(2, *own.embeds.shape[1:], generator=stream))
        numbers.append([int(torch.randint(len(pool), (1,), generator=stream)) for pool in pools])
    drawn = torch.stack(normal, dim=1).to(own.embeds)
    # What else the own prompt gives, such as a pooled vector, is not searched and stays.
    starts = [own, own, *(replace(own.with_embeds(embeds), ids=None, mask=None) for embeds in drawn)]
    for place, pool in enumerate(pools):
        starts.append(pool[[row[place] for row in numbers]])
    return starts
