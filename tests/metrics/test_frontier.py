"""One number for a curve of copies left against what it costs, on curves whose area is known."""

import numpy as np
import pytest

from unmemorize.metrics.frontier import frontier_area


def test_steps_are_added_up():
    """All of it to a loss of 0.05, half to 0.10, a tenth to the end; what comes later or is worse changes nothing."""
    area = (1 * 0.05 + 0.5 * 0.05 + 0.1 * 0.15) / 0.25
    assert frontier_area([0.1, 0.05], [0.1, 0.5]) == pytest.approx(area)
    assert frontier_area([0.1, 0.05, 0.3, 0.2], [0.1, 0.5, 0.0, 0.7]) == pytest.approx(area)


def test_extremes():
    assert frontier_area([], []) == 1
    assert frontier_area([0.25], [0.0]) == 1
    assert frontier_area([-0.1], [0.0]) == 0
    assert frontier_area([0.0], [1.4]) == 1  # more copies than before are no gain


def test_it_is_the_mean_of_the_smallest_share_within_a_loss():
    """Against the definition, on a fine grid of losses."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        losses, left = rng.uniform(-0.05, 0.4, 6), rng.uniform(0, 1.2, 6)
        grid = (np.arange(20_000) + 0.5) / 20_000 * 0.25
        within = np.where(losses[:, None] <= grid, left[:, None], 1).min(axis=0)
        assert frontier_area(losses, left) == pytest.approx(np.minimum(within, 1).mean(), abs=1e-3)
