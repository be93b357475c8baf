"""The vectors of an SSCD network, in whose cosine a captioned or cropped copy is near, for who has one.

Not imported by an audit without one: it brings torch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.data.hashes import Network
from unmemorize.metrics.sscd import SSCD_RECIPES, load_sscd, sscd_criterion, sscd_features

RECIPE = "sscd-288"  # SSCD's own, with its threshold
LONGEST = 16  # times its width: a longer picture has no vector, or at the recipe's size it would fill the memory


def network_rule(weights: Path) -> Criterion:
    """When two pictures are copies by the network in a file; it holds the file's hash.

    Raises:
        UserError: There is no such file.
    """
    return sscd_criterion(weights, RECIPE)


def load_network(weights: Path) -> Network:
    """The network in a file as a function, which computes on a GPU where there is one.

    One picture is embedded at a time, so that its vector does not depend on those it is read with.

    Raises:
        UserError: It holds no network that embeds pictures; from the function, too, where a vector is not finite or has
            another size than the others.
        MissingExtra: It is ONNX and onnxruntime is not installed.
    """
    rule = network_rule(weights)
    embed = load_sscd(weights, "cuda" if torch.cuda.is_available() else "cpu")

    def vector(picture: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        return sscd_features(pixels[None], rule, embed)[0]

    side = SSCD_RECIPES[RECIPE].resize
    size = len(vector(Image.new("RGB", (side, side), "grey")))

    def network(picture: Image.Image) -> bytes | None:
        if max(picture.size) > LONGEST * min(picture.size):
            return None
        features = vector(picture)
        if len(features) != size:
            raise UserError(f"{weights}: gives vectors of {size} and of {len(features)} numbers: name an SSCD network")
        return features.numpy().astype(np.float16).tobytes()

    return network
