"""Opposite guidance: away from the prompt until the transition point, then towards it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from unmemorize.core.bounds import Share
from unmemorize.core.methods import Acts, method
from unmemorize.core.sample import Sampler
from unmemorize.mitigate.dynamic_transition import DynamicSampler
from unmemorize.mitigate.sampling import BySampler
from unmemorize.mitigate.static_transition import UNTIL, StaticSampler, require_share


@method("opposite-guidance", paper="Jain et al. 2025 (OG)", cost="none", needs=("unconditional",))
@dataclass(frozen=True)
class OppositeGuidance(BySampler):
    """Guide away from the prompt until the transition point, and towards it from there on.

    ε_u − s (ε_c − ε_u) leaves the basin of the memorized picture sooner than no guidance does.

    Paper: Jain et al. 2025 (OG with STP: s = 2 until 650 of 1000 timesteps).
    Differs: the sign is that of the paper at every step, where the public code turns it at each. A dynamic transition
    is looked for on the trajectory itself; the public code samples one in advance, at the cost of another picture.

    Attributes:
        scale: s, the strength of guidance away from the prompt.
        transition: Static: at a noise level; dynamic: past the first minimum of each picture's magnitude.
        until: The share of noise, σ / (α + σ), of the static transition.
    """

    acts: ClassVar[Acts] = "guidance"
    guided: ClassVar[bool] = True

    scale: float = 2.0
    transition: Literal["static", "dynamic"] = "static"
    until: Share = UNTIL

    def __post_init__(self) -> None:
        require_share(self.until)

    def sampler(self, base: Sampler) -> Sampler:
        """With a negative scale until then."""
        if self.transition == "dynamic":
            return DynamicSampler(base.steps, base.guidance, before=-self.scale)
        return StaticSampler(base.steps, base.guidance, before=-self.scale, until=self.until)
