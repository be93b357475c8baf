"""What is read: regular files, and pictures in formats that start no other program."""

from __future__ import annotations

import contextlib
import io
import os

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features

from hostile import EPS, XPM, fake_ghostscript, named_pipe
from unmemorize.core.errors import UserError
from unmemorize.core.files import require_file, require_plain
from unmemorize.core.pictures import MAX_PIXELS, Unusable, read_picture
from unmemorize.core.run import Run, RunRecord, load_record
from unmemorize.data.captions import pieces
from unmemorize.data.pictures import load_image
from unmemorize.data.source import read_prompts, read_references
from unmemorize.report.pictures import picture_loader
from unmemorize.report.rebuild import rebuild_report

READERS = {
    "a training picture": lambda folder: read_references(folder, (8, 8)),
    "a picture of a run": lambda folder: load_image(folder / "a.png"),
    "a picture of a page": lambda folder: picture_loader(folder)("a.png"),
    "bytes of a data set": lambda folder: read_picture((folder / "a.png").read_bytes()),
}


@pytest.mark.parametrize("reader", READERS)
def test_no_picture_starts_a_program(reader, tmp_path, monkeypatch):
    """PostScript under the name of a PNG never reaches Ghostscript, whoever opens it."""
    mark = tmp_path / "started"
    monkeypatch.setenv("PATH", str(fake_ghostscript(tmp_path / "bin", mark)), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(EPS)
    with contextlib.suppress(UserError, Unusable):
        assert READERS[reader](tmp_path / "pictures") is None
    assert not mark.exists()


def test_the_mark_is_left_where_the_format_is_free(tmp_path, monkeypatch):
    """The test above can fail: Pillow, left to choose, starts the program."""
    mark = tmp_path / "started"
    monkeypatch.setenv("PATH", str(fake_ghostscript(tmp_path / "bin", mark)), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with contextlib.suppress(OSError), Image.open(io.BytesIO(EPS)) as image:
        image.load()
    assert mark.exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_formats_of_training_sets_are_read(kind, tmp_path):
    """The colours of a picture survive every format that is read, within what it loses."""
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    pixels = np.full((16, 16, 3), (200, 120, 40), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", kind)
    difference = np.abs(np.asarray(read_picture(tmp_path / "a.png"), int) - pixels)
    assert difference.max() <= 6


@pytest.mark.parametrize(
    ("content", "why"),
    [(XPM, "cannot be read"), (b"SIMPLE  =                    T", "cannot be read"), (b"", "empty file")],
)
def test_other_formats_are_refused(content, why, tmp_path):
    """XPM, FITS and nothing at all, under the name of a JPEG."""
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(Unusable, match=why):
        read_picture(tmp_path / "a.jpg")


def test_a_bomb_is_refused(tmp_path):
    """A small file of more pixels than the limit is refused before it is unpacked."""
    Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)).save(tmp_path / "a.png")
    with pytest.raises(Unusable, match="decompression bomb"):
        read_picture(tmp_path / "a.png")


def test_a_turned_picture_is_upright(tmp_path):
    """The EXIF orientation is applied, so that what is shown is what is compared."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").shape == (3, 8, 4)


def _picture(folder):
    named_pipe(folder / "a.png")
    read_references(folder, (8, 8))


def _caption(folder):
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    named_pipe(folder / "a.txt")
    read_references(folder, (8, 8))


def _metadata(folder):
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    named_pipe(folder / "metadata.jsonl")
    read_references(folder, (8, 8))


def _run(folder):
    (folder / "scores").mkdir()
    named_pipe(folder / "scores" / "detect.parquet")
    (folder / "run.json").write_text(_record().model_dump_json())
    with Run.open(folder, _record()):
        pass


def _report(folder):
    named_pipe(folder / "summary.json")
    rebuild_report(folder)


def _data_report(folder):
    named_pipe(folder / "data.json")
    rebuild_report(folder)


def _model(folder):
    from unmemorize.models.load import load

    (folder / "unet").mkdir()
    (folder / "model_index.json").write_text("{}")
    named_pipe(folder / "unet" / "config.json")
    load(str(folder))


WAITING = {
    "prompts": lambda folder: read_prompts(named_pipe(folder / "prompts.txt")),
    "a picture": _picture,
    "a caption": _caption,
    "metadata": _metadata,
    "a data set": lambda folder: pieces(named_pipe(folder / "a.tar")),
    "a run's record": lambda folder: load_record(named_pipe(folder / "run.json").parent),
    "a run's table": _run,
    "a run's summary": _report,
    "a data run's summary": _data_report,
    "a file of a model": _model,
}


def _record() -> RunRecord:
    return RunRecord(status="running", spec={}, versions={}, model={}, data={})


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", WAITING)
def test_a_named_pipe_is_one_line_and_nothing_waits(place, tmp_path):
    """Wherever a file is read, a named pipe is refused by name instead of waiting for a writer."""
    with pytest.raises(UserError, match="a named pipe") as refused:
        WAITING[place](tmp_path)
    assert len(str(refused.value).splitlines()) == 1


def test_links_are_followed_and_loops_end(tmp_path):
    """A link to a file is a file; a link to a pipe is a pipe; a folder that links to itself is looked through once."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "loop").symlink_to(".")
    require_file(tmp_path / "link", "name a file")
    require_plain(tmp_path)
    (tmp_path / "piped").symlink_to(named_pipe(tmp_path / "pipe"))
    with pytest.raises(UserError, match="a named pipe, not a file: name a file"):
        require_file(tmp_path / "piped", "name a file")
