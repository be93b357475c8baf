"""Whether pictures are copies of training pictures, as a function that methods can be given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.results import Match
from unmemorize.core.run import Source, digest
from unmemorize.data.source import read_references
from unmemorize.metrics.similarity import PIXELS, load_sscd, match_pixels, match_sscd, sscd_criterion
from unmemorize.models.load import EMBEDDED
from unmemorize.models.unet import UNetModel
from unmemorize.testbed import embedded

LARGE = 256  # pixels from which pictures are compared by a copy-detection network


@dataclass(frozen=True)
class CopyCheck:
    """The criterion, the pictures it compares with, and the comparison: pictures (n, 3, h, w) to their matches."""

    criterion: Criterion
    source: Source
    match: Callable[[Tensor], list[Match]]

    def __call__(self, images: Tensor) -> list[bool]:
        """Which of the pictures are copies, verbatim or of a template."""
        return [m.verdict != "none" for m in self.match(images)]


def copy_check(model: UNetModel, name: str, images: str, sscd: str = "", recipe: str = "sscd-320") -> CopyCheck:
    """Comparison with the pictures in a folder, or with an embedded model's own.

    Raises:
        UserError: There are no pictures to compare with, they cannot be read, or they need an SSCD file.
    """
    if not images and name not in EMBEDDED:
        raise UserError(f"{name}: copies of what? name the folder of training pictures with --images")
    if not sscd and max(model.image_size) >= LARGE:
        raise UserError(
            f"pictures of {max(model.image_size)} px are compared by a copy-detection network: "
            "name its file with --sscd"
        )
    criterion = sscd_criterion(Path(sscd), recipe) if sscd else PIXELS
    embed = load_sscd(Path(sscd)) if sscd else None
    references = read_references(Path(images) if images else embedded.IMAGES, model.image_size)
    pixels = digest(image.numpy().tobytes() for image in references.images)

    def match(found: Tensor) -> list[Match]:
        if embed is None:
            return match_pixels(found, references)
        return match_sscd(found, references, criterion, embed)

    return CopyCheck(criterion, Source(source=images or name, sha256=pixels, count=len(references.names)), match)
