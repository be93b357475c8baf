"""What identifies a picture: hashes of its file and pixels, a perceptual hash, a small embedding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unmemorize.core.pictures import read_picture

SMALL = 16  # the embedding is the picture at 16 × 16 pixels
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green and blue in a grey picture (ITU-R BT.601)
GREY = 0.05  # length of the colours of an embedding, whose own length is 1, below which it is grey
Network = Callable[[Image.Image], bytes | None]  # from a picture to its vector, in half precision, if it has one


@dataclass(frozen=True)
class Looks:
    """A picture's size, the hash of its pixels, its perceptual hash (64 bits), its embedding, a network's vector."""

    width: int
    height: int
    pixels: bytes
    perceptual: int
    embedding: bytes
    sscd: bytes | None = None


def file_looks(content: bytes, network: Network | None = None) -> dict[str, object]:
    """What identifies the picture in a file: the columns of `Looks`, and `file`, the hash of the file itself.

    Raises:
        Unusable: As `read_picture`.
    """
    return vars(looks_of(read_picture(content), network)) | {"file": _digest(content)}


def looks_of(image: Image.Image, network: Network | None = None) -> Looks:
    """What identifies an RGB picture, with its vector where there is a network."""
    import imagehash  # an extra, which `database.require` asks for

    perceptual = np.packbits(imagehash.phash(image).hash.ravel()).view(">u8")[0]
    pixels = _digest(repr(image.size).encode() + image.tobytes())
    vector = None if network is None else network(image)
    return Looks(*image.size, pixels, int(perceptual), _embedding(image), vector)


def similarity(first: list[bytes], second: list[bytes]) -> NDArray[np.float32]:
    """Cosine of embeddings, pair by pair: 1 for the same picture, 0 where either is flat.

    Where either picture is grey, both are compared without their colours: a greyed copy is a copy.
    """
    one, other = unpack(first), unpack(second)
    luma, other_luma = _luma(one), _luma(other)
    grey = _is_grey(one, luma) | _is_grey(other, other_luma)
    cosines: NDArray[np.float32] = np.where(grey, _dot(unit(luma), unit(other_luma)), _dot(one, other))
    return cosines


def similarities(embeddings: list[bytes]) -> NDArray[np.float32]:
    """`similarity` of every embedding with every other: (n, n)."""
    colour = unpack(embeddings)
    luma = _luma(colour)
    grey = _is_grey(colour, luma)
    bright = unit(luma)
    cosines: NDArray[np.float32] = np.where(grey[:, None] | grey, bright @ bright.T, colour @ colour.T)
    return cosines


def copy_cosine(one: bytes | None, other: bytes | None) -> float | None:
    """The cosine of the vectors of two pictures, if both have one."""
    if one is None or other is None:
        return None
    first, second = unpack([one, other])
    return min(float(first @ second), 1.0)


def brightness(embeddings: list[bytes]) -> NDArray[np.float32]:
    """The pictures without their colours, at unit length: (n, 256); zero where they are flat."""
    return unit(_luma(unpack(embeddings)))


def unpack(stored: list[bytes]) -> NDArray[np.float32]:
    """Embeddings as (n, 256 pixels × 3 channels), or other vectors as (n, d), as rows hold them; n > 0."""
    return np.frombuffer(b"".join(stored), np.float16).reshape(len(stored), -1).astype(np.float32)


def _luma(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The brightness of each pixel: (n, 256)."""
    pixels = embeddings.reshape(len(embeddings), SMALL * SMALL, 3)
    return pixels @ LUMA


def _is_grey(embeddings: NDArray[np.float32], luma: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which embeddings hold no colour, (n,), but for what a JPEG file adds."""
    colour = embeddings - np.repeat(luma, 3, axis=1)
    is_grey: NDArray[np.bool_] = np.linalg.norm(colour, axis=1) < GREY
    return is_grey


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors at unit length; those of no length stay as they are."""
    norm: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    norm[norm == 0] = 1
    divided: NDArray[np.float32] = vectors / norm
    return divided


def _dot(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    products: NDArray[np.float32] = (first * second).sum(1)
    return products


def _embedding(image: Image.Image) -> bytes:
    """The small picture without its mean colour, at unit length.

    For two pictures whose root mean square difference is r times their contrast the cosine is 1 − r²/2.
    """
    small = np.asarray(image.resize((SMALL, SMALL), Image.Resampling.BOX), np.float32) / 255
    centred: NDArray[np.float32] = small - small.mean((0, 1))
    norm = float(np.linalg.norm(centred))
    flat = norm < 0.01 * SMALL
    return (centred * (0 if flat else 1 / norm)).astype(np.float16).tobytes()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
