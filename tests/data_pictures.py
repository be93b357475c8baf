"""Pictures, sources made of them in every form the data audit reads, and stand-ins for networks that tell copies."""

from __future__ import annotations

import io
import json
import tarfile
import warnings

import numpy as np
import torch
from PIL import Image


def draw(key: int, size: int = 48, noise: float = 0.0) -> Image.Image:
    """A picture of smooth shapes that depends on `key`; `noise` changes pixels and not the picture."""
    rng = np.random.default_rng(key)
    y, x = np.mgrid[0 : 1 : complex(size), 0 : 1 : complex(size)]
    channels = []
    for _ in range(3):
        waves = sum(rng.normal() * np.cos(np.pi * (rng.integers(1, 6) * x + rng.integers(1, 6) * y)) for _ in range(5))
        channels.append(waves)
    pixels = 128 + 40 * np.stack(channels, -1) + np.random.default_rng(7).normal(size=(size, size, 3)) * noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tar_of(path, members):
    """Write an archive of (name, bytes)."""
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def folder_of(path, rows):
    """A folder of pictures with a .txt beside each: (name, picture or bytes, caption or bytes)."""
    path.mkdir(parents=True, exist_ok=True)
    for name, picture, caption in rows:
        if picture is not None:
            (path / f"{name}.png").write_bytes(picture if isinstance(picture, bytes) else png(picture))
        if caption is not None:
            (path / f"{name}.txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return path


def metadata(path, rows):
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def framed(record):
    """A record as a TFRecord file has it; the checksums are nobody's concern here."""
    return len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4)


def example(**features):
    """An example in protocol buffers' format, of bytes and whole numbers."""

    def of_length(number, content):
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    entries = b""
    for name, value in features.items():
        held = of_length(1, of_length(1, value)) if isinstance(value, bytes) else of_length(3, b"\x08" + _varint(value))
        entries += of_length(1, of_length(1, name.encode()) + of_length(2, held))
    return of_length(1, entries)


def _varint(number):
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


class Upper(torch.nn.Module):
    """Colours of the upper part of a picture, coarsely, without their mean: a stand-in for a copy-detection network."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        coarse = torch.nn.functional.adaptive_avg_pool2d(x[:, :, : x.shape[2] * 3 // 4], 4)
        return (coarse - coarse.mean((2, 3), keepdim=True)).flatten(1)


class Everywhere(torch.nn.Module):
    """As many numbers as a picture has columns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2))


def network_file(path, network):
    """Write a network as published ones come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        torch.jit.script(network).save(str(path))
    return path
