"""Any source, row by row into Parquet shards; what cannot be used is written down with its reason and left out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.crew import WHOLE, Idle, Part, never
from unmemorize.core.files import kind_of
from unmemorize.core.pictures import Unusable
from unmemorize.core.run import Source, atomic, digest
from unmemorize.core.shards import Shards
from unmemorize.core.storage import files_in, remote_name, stamp_of
from unmemorize.core.text import normalise, words
from unmemorize.data.hashes import Network, file_looks
from unmemorize.data.items import Item, Piece
from unmemorize.data.streamed import is_streamed, stamps_of

BATCH = 1024
SHIFT = 32  # a row's number is its piece's number, shifted, plus its place in the piece
ROWS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("caption", pa.string()),
        ("text", pa.string()),
        ("words", pa.list_(pa.string())),
        ("captioned_by", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("file", pa.binary()),
        ("pixels", pa.binary()),
        ("perceptual", pa.uint64()),
        ("embedding", pa.binary()),
        ("sscd", pa.binary()),
    ]
)
# A picture without a caption is compared with the others all the same; its caption is null.
UNCAPTIONED = ("no caption", "empty caption")
SKIPPED = pa.schema([("id", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class AuditedPiece:
    """A piece that a finished audit, in `run`, has read: its rows are copied; its pictures are those of `piece`."""

    run: Path
    number: int
    piece: Piece | None = None

    def items(self) -> Iterator[Item]:
        """Read it again; nothing where its source is no longer what was read."""
        return iter(()) if self.piece is None else self.piece.items()


def source_of(source: Path, column: str) -> Source:
    """What a run's record says of a source: names, sizes and times of its files stand for their contents."""
    if is_streamed(source):
        stamps = stamps_of(source)
    else:
        files = files_in(source) if kind_of(source) == "a folder" else [source]
        stamps = [(str(path.relative_to(source)), *stamp_of(path)) for path in files]
    facts = [repr(stamp).encode(errors="backslashreplace") for stamp in stamps]
    return Source(source=remote_name(source), sha256=digest([column.encode(), *facts]), count=len(stamps))


def read_pieces(
    pieces: Sequence[Piece], run: Path, part: Part = WHOLE, idle: Idle = never, network: Network | None = None
) -> Iterator[int]:
    """Write each piece's rows to `shards/data` of a run, and those skipped to `shards/skipped`, a shard a piece.

    Yields how many pieces of the part are done. Those that are there are not read again. Where a network is given, rows
    have its vectors.
    """
    shards = _shards(pieces, run)

    def do(number: int) -> None:
        piece = pieces[number]
        if isinstance(piece, AuditedPiece):
            _copy_piece(piece, shards)
        else:
            _read_piece(piece, number, shards, network)

    for done, _ in enumerate(shards.take(do, part, idle=idle), 1):
        yield done


def require_read(pieces: Sequence[Piece], run: Path, part: Part) -> None:
    """Go on only where all pieces are read.

    Raises:
        Unfinished: Pieces of other parts are not.
    """
    _shards(pieces, run).require_all(part)


def _shards(pieces: Sequence[Piece], run: Path) -> Shards:
    return Shards.of(run / "shards" / "data", len(pieces), 1)


def rows_of(run: Path) -> list[Path]:
    """The files of the rows that were read."""
    return sorted((run / "shards" / "data").glob("*.parquet"))


def row_batches(path: Path, columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
    """Some columns of a file of rows, `size` rows at a time, and no more of them in memory."""
    with pq.ParquetFile(path, pre_buffer=False) as file:  # a buffer holds all that was read until the file is closed
        yield from file.iter_batches(size, columns=columns)


def skipped_of(run: Path) -> list[Path]:
    """The files of the rows that were skipped, with the reasons."""
    return sorted((run / "shards" / "skipped").glob("*.parquet"))


def _read_piece(piece: Piece, number: int, shards: Shards, network: Network | None) -> None:
    target = shards.path(number)
    held: list[dict[str, Any]] = []
    lost: list[dict[str, str]] = []
    rows = 0
    with (
        atomic(target) as temporary,  # renamed last: that it is there says that both are whole
        atomic(target.parents[1] / "skipped" / target.name) as left,
        pq.ParquetWriter(left, SKIPPED) as skipped,
        pq.ParquetWriter(temporary, ROWS) as kept,
    ):
        for place, item in enumerate(piece.items()):
            row = _row(item, (number << SHIFT) + place, network)
            if isinstance(row, str):
                lost.append({"id": item.id, "reason": row})
            else:
                held.append(row)
                rows += 1
            if len(held) + len(lost) >= BATCH:
                _flush(kept, held, ROWS)
                _flush(skipped, lost, SKIPPED)
        _flush(kept, held, ROWS)
        _flush(skipped, lost, SKIPPED)
        kept.add_key_value_metadata(shards.footer(number, rows))


def _copy_piece(piece: AuditedPiece, shards: Shards) -> None:
    """Copy what another run has of a piece of the same number, so that its rows keep theirs."""
    target, skipped = shards.path(piece.number), skipped_of(piece.run)[piece.number]
    with (
        atomic(target) as temporary,
        atomic(target.parents[1] / "skipped" / target.name) as left,
        pq.ParquetFile(rows_of(piece.run)[piece.number]) as there,
        pq.ParquetWriter(temporary, ROWS) as kept,
    ):
        shutil.copyfile(skipped, left)
        for batch in there.iter_batches(BATCH):
            kept.write_batch(batch)
        kept.add_key_value_metadata(shards.footer(piece.number, there.metadata.num_rows))


def _flush(writer: pq.ParquetWriter, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    if rows:
        writer.write_table(pa.Table.from_pylist(rows, schema))
        rows.clear()


def _row(item: Item, number: int, network: Network | None) -> dict[str, Any] | str:
    """The row as it is stored, or why it is skipped."""
    row: dict[str, Any] = {"row": number, "id": item.id, "captioned_by": item.captioned_by}
    if item.problem in UNCAPTIONED and item.load is not None:
        row |= {"caption": None, "text": None, "words": []}
    elif item.problem:
        return item.problem
    else:
        caption = item.caption or ""
        text = normalise(caption)
        row |= {"caption": caption, "text": text, "words": words(text)}
    if item.load is None:
        return row
    try:
        return row | file_looks(item.load(), network)
    except (Unusable, OSError) as error:
        return str(error) if isinstance(error, Unusable) or not error.errno else "file cannot be read"


def picture_files(pieces: Sequence[Piece], rows: set[int]) -> Iterator[tuple[int, bytes]]:
    """The picture files of a few rows, by reading again the pieces that hold them."""
    for number in sorted({row >> SHIFT for row in rows}):
        wanted = {row & ((1 << SHIFT) - 1) for row in rows if row >> SHIFT == number}
        for place, item in enumerate(pieces[number].items()):
            if place in wanted and item.load is not None:
                yield (number << SHIFT) + place, item.load()
            if place >= max(wanted):
                break
