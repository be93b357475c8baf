"""SSCD: a network that was trained to tell copies, from a file the user names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmemorize.core.batches import is_out_of_memory
from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import MissingExtra, UserError
from unmemorize.core.files import require_file
from unmemorize.core.results import Match
from unmemorize.metrics.similarity import References, finite, unit

# The authors' file of the network that they recommend, released under the MIT licence.
URL = "https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchscript.pt"


@dataclass(frozen=True)
class Recipe:
    """How pictures are prepared for an SSCD network: resize, crop, mean and standard deviation, threshold."""

    resize: int
    square: bool
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    threshold: float


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SSCD_RECIPES = {
    "sscd-320": Recipe(320, True, None, *_IMAGENET, 0.7),  # NeMo, DoRI (disc_mixup)
    "sscd-288": Recipe(288, False, None, *_IMAGENET, 0.75),  # SSCD's own (disc_mixup)
    "sscd-wen": Recipe(256, False, 224, *_HALF, 0.7),  # Wen et al., SAIL (disc_large)
    "sscd-dcr": Recipe(256, False, 224, *_HALF, 0.5),  # DCR
    "sscd-membench": Recipe(288, True, None, *_IMAGENET, 0.5),  # MemBench (disc_large)
}


def prepare(images: Tensor, recipe: Recipe) -> Tensor:
    """Resize with antialiasing, crop the centre and normalise images (n, 3, h, w) in [0, 1]."""
    h, w = images.shape[-2:]
    scale = recipe.resize / min(h, w)
    size = (recipe.resize, recipe.resize) if recipe.square else (round(h * scale), round(w * scale))
    x = F.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
    if recipe.crop is not None:
        top, left = (x.shape[-2] - recipe.crop) // 2, (x.shape[-1] - recipe.crop) // 2
        x = x[..., top : top + recipe.crop, left : left + recipe.crop]
    mean = torch.tensor(recipe.mean).view(3, 1, 1)
    std = torch.tensor(recipe.std).view(3, 1, 1)
    return (x - mean) / std


def sscd_criterion(weights: Path, recipe: str) -> Criterion:
    """The copy criterion of an SSCD file under a named recipe.

    Raises:
        UserError: No such file or recipe.
    """
    if recipe not in SSCD_RECIPES:
        raise UserError(f"unknown SSCD recipe {recipe!r}: choose one of {', '.join(SSCD_RECIPES)}")
    require_file(weights, f"name an SSCD TorchScript (.pt) or ONNX (.onnx) file, such as {URL}")
    hashed = hashlib.sha256(weights.read_bytes()).hexdigest()
    return Criterion("sscd", SSCD_RECIPES[recipe].threshold, recipe, hashed, higher_is_closer=True)


def load_sscd(weights: Path, device: torch.device | str = "cpu") -> Callable[[Tensor], Tensor]:
    """A function from prepared images to unit-length embeddings, both on the CPU.

    A TorchScript network computes on `device`, one in ONNX format on the CPU.

    Raises:
        UserError: The file is neither TorchScript nor ONNX; from the function, what is in it embeds no pictures.
        MissingExtra: It is ONNX and onnxruntime is not installed.
    """
    network = _load_onnx(weights) if weights.suffix == ".onnx" else _load_torchscript(weights, device)

    def embed(x: Tensor) -> Tensor:
        try:
            features = network(x)
        except Exception as error:  # of whatever the network in the file does with pictures
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise UserError(f"{weights}: cannot embed pictures: name an SSCD network ({reason})") from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(x) or not features.numel():
            raise UserError(f"{weights}: gives no vector a picture: name an SSCD network")
        return F.normalize(features.float())

    return embed


def _load_torchscript(weights: Path, device: torch.device | str) -> Callable[[Tensor], Any]:
    try:
        network = torch.jit.load(str(weights), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{weights}: not a TorchScript file: name an SSCD .torchscript.pt or .onnx file") from error

    def compute(x: Tensor) -> Any:
        with torch.no_grad():
            features = network(x.to(device))
        return features.cpu() if isinstance(features, Tensor) else features

    return compute


def _load_onnx(weights: Path) -> Callable[[Tensor], Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("an SSCD model in ONNX format", "onnx") from error
    try:
        session = onnxruntime.InferenceSession(str(weights), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own unnamed family of errors
        raise UserError(f"{weights}: not an ONNX model: name an SSCD .torchscript.pt or .onnx file") from error
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def match_sscd(
    images: Tensor,
    references: References,
    criterion: Criterion,
    embed: Callable[[Tensor], Tensor],
    batch: int = 16,
    features: Tensor | None = None,
) -> list[Match]:
    """Match each image with the reference of highest SSCD cosine. It cannot see templates.

    `features` are the references' own, (m, d), where they were computed before.
    """
    if features is None:
        features = sscd_features(references.pixels, criterion, embed, batch)
    best = (sscd_features(images, criterion, embed, batch) @ features.T).max(dim=1)
    return [_sscd_match(references.names[i], v, criterion) for v, i in zip(best[0].tolist(), best[1], strict=True)]


def match_sscd_targets(
    images: Tensor,
    targets: References,
    criterion: Criterion,
    embed: Callable[[Tensor], Tensor],
    batch: int = 16,
    features: Tensor | None = None,
) -> list[Match]:
    """Match each image with its own target by SSCD cosine: row i of one with row i of the other.

    `features` are the targets' own, (n, d), where they were computed before.
    """
    if features is None:
        features = sscd_features(targets.pixels, criterion, embed, batch)
    cosine = (sscd_features(images, criterion, embed, batch) * features).sum(1)
    return [_sscd_match(name, v, criterion) for name, v in zip(targets.names, cosine.tolist(), strict=True)]


def sscd_features(pixels: Tensor, criterion: Criterion, embed: Callable[[Tensor], Tensor], batch: int = 16) -> Tensor:
    """The SSCD embeddings of pictures, bytes or in [0, 1]: (n, d)."""
    recipe = SSCD_RECIPES[criterion.recipe]
    features = torch.cat([embed(prepare(unit(part), recipe)) for part in pixels.split(batch)])
    return finite(features, "the copy-detection network gives features that are not finite: name another file")


def _sscd_match(name: str, cosine: float, criterion: Criterion) -> Match:
    return Match(name, 1 - cosine, cosine, "verbatim" if criterion(cosine) else "none")
