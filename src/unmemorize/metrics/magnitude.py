"""How much the text changes the noise prediction."""

from __future__ import annotations

from torch import Tensor

from unmemorize.core.model import Prediction


def magnitude(cond: Prediction, uncond: Prediction) -> Tensor:
    """‖ε(x, t, e_p) − ε(x, t, e_∅)‖₂ over all of each image: (n,) in float32.

    Paper: Wen et al. 2024, the detection metric.
    Differs: one norm per image; a norm over the batch would depend on how many images share it.
    """
    return (cond.eps.float() - uncond.eps.float()).flatten(1).norm(dim=1)
