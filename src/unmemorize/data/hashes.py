"""What identifies a picture: hashes of its file and pixels, a perceptual hash, a small embedding."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unmemorize.core.pictures import read_picture

SMALL = 16  # the embedding is the picture at 16 × 16 pixels


@dataclass(frozen=True)
class Looks:
    """A picture's size, the hashes of its file and of its pixels, its perceptual hash (64 bits), its embedding."""

    width: int
    height: int
    file: bytes
    pixels: bytes
    perceptual: int
    embedding: bytes


def looks(content: bytes) -> Looks:
    """Hash a picture's file.

    Raises:
        Unusable: As `read_picture`.
    """
    import imagehash  # an extra, which `database.require` asks for

    image = read_picture(content)
    perceptual = np.packbits(imagehash.phash(image).hash.ravel()).view(">u8")[0]
    pixels = _digest(repr(image.size).encode() + image.tobytes())
    return Looks(*image.size, _digest(content), pixels, int(perceptual), _embedding(image))


def similarity(first: list[bytes], second: list[bytes]) -> NDArray[np.float32]:
    """Cosine of embeddings, pair by pair: 1 for the same picture, 0 where either is flat."""
    cosines: NDArray[np.float32] = (_unpack(first) * _unpack(second)).sum(1)
    return cosines


def similarities(embeddings: list[bytes]) -> NDArray[np.float32]:
    """Cosine of every embedding with every other: (n, n)."""
    unpacked = _unpack(embeddings)
    return unpacked @ unpacked.T


def _unpack(embeddings: list[bytes]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(embeddings), np.float16).reshape(len(embeddings), -1).astype(np.float32)


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
