"""The testbed's pictures: emoji artwork in eight openly licensed styles, named by CLDR.

`fetch` packs the pinned npm packages, `render` draws every picture at 64 pixels into one Parquet file,
`compose` places a drawing on a background. One name has several pictures, one per style: that variety
is what makes an ordinary prompt *not* memorized.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import subprocess
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from unmemorize.core.errors import MissingExtra, UserError
from unmemorize.core.run import atomic

SIZE = 64
# CLDR groups left out: components; people, signs and flags, whose styles or names are near-duplicates of each other.
SKIPPED_GROUPS = (1, 2, 8, 9)


@dataclass(frozen=True)
class Style:
    """One artwork set: an npm package, its licence, and whom to credit."""

    package: str
    version: str
    sha256: str
    licence: str
    credit: str

    @property
    def name(self) -> str:
        """The package's short name, e.g. `noto`."""
        return self.package.rsplit("/", 1)[-1]

    @property
    def shippable(self) -> bool:
        """Whether its pictures may be redistributed with this package: share-alike artwork is not."""
        return self.licence in {"Apache-2.0", "MIT", "CC-BY-4.0"}


NAMES = Style(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "emojibase by Miles Johnson; names from Unicode CLDR",
)
STYLES = (
    Style(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Noto Emoji by Google",
    ),
    Style(
        "@iconify-json/noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        "Noto Emoji (version 1) by Google",
    ),
    Style(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twemoji by Twitter and contributors",
    ),
    Style(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Fluent Emoji by Microsoft",
    ),
    Style(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "EmojiTwo / Emoji One by the EmojiTwo contributors",
    ),
    Style(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0",
        "Streamline Emojis by Streamline",
    ),
    Style(
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "CC-BY-SA-4.0",
        "OpenMoji by HfG Schwäbisch Gmünd",
    ),
    Style(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3",
        "CC-BY-SA-4.0",
        "Emoji One (version 1) by Emoji One contributors",
    ),
)


@dataclass(frozen=True)
class Picture:
    """One drawing: `art` is `style/slug`, `name` its CLDR name, `tags` CLDR keywords, `group` an emoji group."""

    art: str
    name: str
    tags: tuple[str, ...]
    group: int
    png: bytes

    @property
    def style(self) -> Style:
        """The artwork set it comes from."""
        return next(s for s in STYLES if s.name == self.art.split("/")[0])


@dataclass(frozen=True)
class Composition:
    """How a drawing is placed: a background, a rigid motion with scale, and a coloured patch or none.

    `background` and the last three numbers of `patch` are RGB in 0..255; `shift` is in pixels; `angle` in degrees;
    `patch` is (left, top, right, bottom, r, g, b): the part of a template that varies.
    """

    art: str
    background: tuple[int, int, int]
    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    flip: bool = False
    patch: tuple[int, int, int, int, int, int, int] | None = None

    @staticmethod
    def random(art: str, rng: np.random.Generator) -> Composition:
        """A drawing on a random light background, slightly turned, scaled and moved, flipped or not."""
        r, g, b = rng.integers(200, 256, 3).tolist()
        return Composition(
            art,
            (r, g, b),
            round(float(rng.uniform(-12, 12)), 2),
            round(float(rng.uniform(0.75, 1.0)), 3),
            (round(float(rng.uniform(-5, 5)), 2), round(float(rng.uniform(-5, 5)), 2)),
            bool(rng.integers(2)),
        )


def compose(drawing: Image.Image, composition: Composition) -> Image.Image:
    """Place an RGBA drawing as a composition says; returns an RGB image of the drawing's size."""
    w, h = drawing.size
    angle = math.radians(composition.angle)
    cos = math.cos(angle) / composition.scale
    sin = math.sin(angle) / composition.scale
    cx = w / 2 + composition.shift[0]
    cy = h / 2 + composition.shift[1]
    mirror = -1 if composition.flip else 1
    # From places of the result to those of the drawing, as Pillow wants it.
    matrix = (
        mirror * cos,
        mirror * sin,
        w / 2 - mirror * (cos * cx + sin * cy),
        -sin,
        cos,
        h / 2 + sin * cx - cos * cy,
    )
    # Premultiplied alpha ("RGBa"): interpolating plain RGBA draws dark fringes.
    moved = drawing.convert("RGBa").transform((w, h), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (w, h), (*composition.background, 255))
    canvas.alpha_composite(moved.convert("RGBA"))
    if composition.patch is not None:
        left, top, right, bottom, *colour = composition.patch
        ImageDraw.Draw(canvas).rectangle((left, top, right - 1, bottom - 1), fill=(*colour, 255))
    return canvas.convert("RGB")


def fetch(folder: Path) -> None:
    """Pack the pinned npm packages into `folder`, checking each against its hash.

    Raises:
        UserError: `npm` is missing or fails, or a package's bytes are not the ones pinned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for style in (NAMES, *STYLES):
        target = _tarball(folder, style)
        if not target.exists():
            try:
                subprocess.run(
                    ["npm", "pack", "--silent", f"{style.package}@{style.version}"],
                    cwd=folder,
                    check=True,
                    capture_output=True,
                )
            except (OSError, subprocess.CalledProcessError) as error:
                raise UserError(f"could not fetch {style.package}@{style.version} with npm: install Node.js") from error
        if hashlib.sha256(target.read_bytes()).hexdigest() != style.sha256:
            raise UserError(f"{target}: not the package this recipe was made with: delete the file and try again")


def render(folder: Path) -> Path:
    """Draw every named picture of every style once into `folder/pictures.parquet`; returns that path."""
    table = folder / "pictures.parquet"
    if not table.exists():
        rows: list[Picture] = []
        for style in STYLES:
            rows += _drawings(folder, style)
        columns = {
            "art": [p.art for p in rows],
            "name": [p.name for p in rows],
            "tags": [list(p.tags) for p in rows],
            "group": [p.group for p in rows],
            "png": [p.png for p in rows],
        }
        with atomic(table) as temporary:
            pq.write_table(pa.table(columns), temporary)
    return table


def pictures(folder: Path) -> list[Picture]:
    """Every picture, in a fixed order, fetched and drawn on first use."""
    if not (folder / "pictures.parquet").exists():
        fetch(folder)
    rows = pq.read_table(render(folder)).to_pylist()
    return [Picture(r["art"], r["name"], tuple(r["tags"]), r["group"], r["png"]) for r in rows]


def well_known(drawn: list[Picture]) -> set[str]:
    """Names with at least four shippable pictures: what the denoisers are taught. The VAE sees every picture."""
    counts = Counter(p.name for p in drawn if p.style.shippable)
    return {name for name, count in counts.items() if count >= 4}


def drawing(picture: Picture) -> Image.Image:
    """The picture's RGBA drawing."""
    return Image.open(io.BytesIO(picture.png)).convert("RGBA")


def repeat_last(name: str, times: int) -> str:
    """The name with its last word said `times` times."""
    return " ".join([name] + [name.split()[-1]] * (times - 1))


def add_word(name: str, word: str, first: bool) -> str:
    """The name with one word before or after it."""
    return f"{word}, {name}" if first else f"{name}, {word}"


def as_tuples(value: Any) -> Any:
    """JSON's lists as tuples, at every depth."""
    if isinstance(value, dict):
        return {key: as_tuples(inner) for key, inner in value.items()}
    return tuple(as_tuples(inner) for inner in value) if isinstance(value, list) else value


def composed(compositions: Sequence[Composition], artwork: Sequence[Picture]) -> list[Image.Image]:
    """The pictures that compositions of drawings make, in order."""
    by_art = {picture.art: drawing(picture) for picture in artwork}
    return [compose(by_art[composition.art], composition) for composition in compositions]


def credits_of(artwork: Sequence[Picture]) -> dict[str, str]:
    """Whom each drawing is by, and its licence."""
    return {picture.art: f"{picture.style.credit}, {picture.style.licence}" for picture in artwork}


def _tarball(folder: Path, style: Style) -> Path:
    return folder / f"{style.package.lstrip('@').replace('/', '-')}-{style.version}.tgz"


def _read_json(folder: Path, style: Style, member: str) -> Any:
    with tarfile.open(_tarball(folder, style)) as tar:
        file = tar.extractfile(f"package/{member}")
        assert file is not None
        return json.load(file)


def _drawings(folder: Path, style: Style) -> Iterator[Picture]:
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtra("drawing the testbed's pictures", "testbed") from error
    icons: dict[str, Any] = _read_json(folder, style, "icons.json")
    names: list[dict[str, Any]] = _read_json(folder, NAMES, "en/data.json")
    for entry in names:
        slug = _slug(entry["label"])
        body = icons["icons"].get(_resolve(icons, slug), {}).get("body")
        if body is None or entry.get("group") in (None, *SKIPPED_GROUPS):
            continue
        width, height = icons.get("width", 16), icons.get("height", 16)
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
        tags = tuple(t.lower() for t in entry.get("tags", ()) if t.isalpha() and t.isascii())
        yield Picture(f"{style.name}/{slug}", _caption(entry["label"]), tags, entry["group"], png)


def _resolve(icons: dict[str, Any], slug: str) -> str:
    alias = icons.get("aliases", {}).get(slug, {})
    mirrored = alias.keys() - {"parent"}  # a mirrored or turned alias is another picture: leave it out
    if not alias:
        return slug
    return "" if mirrored else str(alias["parent"])


def _ascii(label: str) -> str:
    return unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", _ascii(label).replace("&", "and").replace("'", "").replace(".", "")).strip("-")


def _caption(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", _ascii(label).replace("&", "and").replace("'", "")).strip()
