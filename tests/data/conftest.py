"""A database of hand-made rows."""

from __future__ import annotations

import pyarrow as pa
import pytest

from unmemorize.core.text import normalise, words
from unmemorize.data.database import database
from unmemorize.data.duplicates import group_pictures
from unmemorize.data.intake import ROWS
from unmemorize.data.words import collect_captions


@pytest.fixture
def corpus(tmp_path):
    """A database of (caption, picture number) rows; equal numbers are equal pixels, None is no picture."""

    connections = []

    def build(rows):
        lines = []
        for i, (caption, picture) in enumerate(rows):
            text = normalise(caption)
            line = {"row": i, "id": f"r{i}", "caption": caption, "text": text, "words": words(text)}
            if picture is not None:
                key = str(picture).encode()
                # Multiples of an odd constant: no two perceptual hashes are near.
                far = picture * 0x9E3779B97F4A7C15 % 2**64
                line |= {"file": key, "pixels": key, "perceptual": far, "embedding": bytes(1536)}
            lines.append(line)
        context = database(tmp_path / f"work{len(connections)}")
        connection = context.__enter__()
        connections.append(context)
        connection.register("given", pa.Table.from_pylist(lines, ROWS))
        connection.execute("CREATE TABLE items AS SELECT * FROM given")
        group_pictures(connection, [])
        collect_captions(connection)
        return connection

    yield build
    for context in connections:
        context.__exit__(None, None, None)
