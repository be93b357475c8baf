"""The one reader of captions and captioned pictures: folders, tables, tars and saved datasets, by their layout."""

from __future__ import annotations

from pathlib import Path

from unmemorize.core.errors import UserError
from unmemorize.core.files import kind_of, require_file
from unmemorize.core.pictures import ENDINGS
from unmemorize.core.storage import files_in, is_remote, remote_name
from unmemorize.data.documents import document_piece
from unmemorize.data.folders import METADATA, FolderPiece, folder_pieces
from unmemorize.data.items import Piece, is_hidden
from unmemorize.data.streamed import is_streamed, streamed_pieces
from unmemorize.data.tables import dataset_files, holds_pictures, table_pieces
from unmemorize.data.tars import TarPiece
from unmemorize.data.texts import TABLES, text_piece
from unmemorize.data.tfrecords import RecordPiece

ARCHIVES, ARROW, PARQUET = (".tar", ".tgz", ".tar.gz"), (".arrow",), (".parquet",)
DOCUMENTS, RECORDS = (".json",), (".tfrecord", ".tfrecords")


def pieces(source: Path, column: str = "", *, pictures: bool = True) -> list[Piece]:
    """What a source is made of, in pieces that are read one by one.

    A folder is read as its tars or TFRecords; else as its tables, where they hold pictures; else as its pictures, which
    tables and files beside them caption; else as its tables of captions alone.

    Args:
        source: A folder, or a file: .tar, .tfrecord, .parquet, .arrow, .csv, .tsv, .jsonl, .json (as COCO or DCR has
            it), .txt (a caption a line), or a picture; tars, TFRecords and tables may be on object storage; or what
            `datasets` streams, as `streamed` spells it.
        column: The caption column; by default the first of `items.COLUMNS` that a table has.
        pictures: Whether the pictures in tables are wanted, beside the captions.

    Raises:
        UserError: It is not there, holds none of these, or its tables have no caption column.
    """
    if is_streamed(source):
        return [*streamed_pieces(source, column, pictures)]
    kind = kind_of(source)
    if kind == "nothing":
        raise UserError(f"{remote_name(source)}: no such file or folder: name a folder, a .parquet file or a .tar file")
    if kind not in ("a file", "a folder"):
        raise UserError(f"{source}: {kind}: name a folder, a .parquet file or a .tar file")
    found = _pieces_of_folder(source, column) if kind == "a folder" else _pieces_of_file(source, column, pictures)
    if not found:
        held = ", ".join((*ENDINGS[:4], ".parquet", ".jsonl"))
        raise UserError(
            f"{source}: nothing to read in it, no pictures and no tables: it should hold {held} or .tar files, or be "
            "named datasets:FOLDER, where `datasets` reads it"
        )
    return found


def prompt_pieces(path: Path, column: str = "") -> list[Piece]:
    """What a file of prompts is made of; a folder is one of training data, and no list of prompts.

    Raises:
        UserError: It is not there, or has no caption column.
    """
    if not is_streamed(path):
        require_file(path, "name a .txt, .csv, .tsv, .jsonl, .json or .parquet file of prompts")
    return pieces(path, column, pictures=False)


def _pieces_of_file(source: Path, column: str, pictures: bool) -> list[Piece]:
    if _ending([source], ARCHIVES):
        return [TarPiece(source)]
    if _ending([source], RECORDS):
        return [RecordPiece(source, column)]
    if _ending([source], ARROW + PARQUET):
        return [*table_pieces([source], source.parent, column, pictures)]
    if _ending([source], ENDINGS):  # one picture, with the caption that its folder has for it
        beside = _pieces_of_pictures(source.parent, column)
        return [FolderPiece(p.root, tuple(e for e in p.entries if e.name == source.name)) for p in beside]
    if _ending([source], DOCUMENTS):
        return [document_piece(source, column)]
    return [text_piece(source, column)] if _ending([source], (*TABLES, ".txt")) else []


def _pieces_of_folder(source: Path, column: str) -> list[Piece]:
    files = [path for path in files_in(source) if not is_hidden(str(path.relative_to(source)))]
    if archives := _ending(files, ARCHIVES):
        return [TarPiece(path) for path in archives]
    if records := _ending(files, RECORDS):
        return [RecordPiece(path, column) for path in records]
    tables = dataset_files(_ending(files, ARROW)) or _ending(files, PARQUET)
    if any(holds_pictures(path) for path in tables):
        return [*table_pieces(tables, source, column)]
    if _ending(files, ENDINGS) or any(path.name in METADATA for path in files):
        return [*_pieces_of_pictures(source, column)]
    if tables:
        return [*table_pieces(tables, source, column)]
    if texts := _ending(files, TABLES):
        return [text_piece(path, column) for path in texts]
    return [*_pieces_of_pictures(source, column)]


def _pieces_of_pictures(folder: Path, column: str) -> list[FolderPiece]:
    """Pictures that lie one by one, on a disk.

    Raises:
        UserError: They are on object storage, where each would be a request, or several.
    """
    if is_remote(folder):
        raise UserError(f"{remote_name(folder)}: pictures one by one are read on a disk: name tars or Parquet here")
    return folder_pieces(folder, column)


def _ending(files: list[Path], endings: tuple[str, ...]) -> list[Path]:
    return [path for path in files if path.name.lower().endswith(endings)]
