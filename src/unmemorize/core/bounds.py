"""Numbers with bounds, by what they count: what settings of methods and of commands may be."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

Count = Annotated[int, Interval(ge=1, le=100_000)]
Draws = Annotated[int, Interval(ge=1, le=10_000)]  # seeds, pictures and the like, which are held at once
Limit = Annotated[int, Interval(ge=0, le=1_000_000_000)]  # of what is there
Updates = Annotated[int, Interval(ge=0, le=100_000)]
Rank = Annotated[int, Interval(ge=0, le=1024)]
Seed = Annotated[int, Interval(ge=0, le=2**62)]
SamplingSteps = Annotated[int, Interval(ge=0, le=1000)]
Share = Annotated[float, Interval(ge=0, le=1)]
Scale = Annotated[float, Interval(ge=0, le=1e6)]
