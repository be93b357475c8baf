"""Every form of source is read to the same rows; what is bad in it is skipped, counted and harms nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pictures import draw, folder_of, metadata, png, tar_of
from unmemorize.core.errors import UserError
from unmemorize.core.pictures import MAX_PIXELS
from unmemorize.data.captions import pieces
from unmemorize.data.intake import picture_files, read_pieces, rows_of, skipped_of
from unmemorize.data.items import MAX_CAPTION

CAPTIONS = ["a lighthouse at dusk", "古い灯台のそば", "منارة قديمة عند الغروب"]
PICTURES = [png(draw(i)) for i in range(3)]


def read(source, tmp_path, column=""):
    """Rows as (caption, perceptual hash) and skipped ones as {id: reason}."""
    run = tmp_path / "run"
    list(read_pieces(pieces(source, column), run))
    rows = [row for path in rows_of(run) for row in pq.read_table(path).to_pylist()]
    skipped = [row for path in skipped_of(run) for row in pq.read_table(path).to_pylist()]
    return rows, {row["id"]: row["reason"] for row in skipped}


def as_text_files(path):
    return folder_of(path, [(f"p{i}", PICTURES[i], CAPTIONS[i]) for i in range(3)])


def as_metadata(path):
    folder_of(path, [(f"p{i}", PICTURES[i], None) for i in range(3)])
    return metadata(path, [{"file_name": f"p{i}.png", "text": CAPTIONS[i]} for i in range(3)])


def as_csv(path):
    folder_of(path, [(f"p{i}", PICTURES[i], None) for i in range(3)])
    lines = [f'p{i}.png,"{CAPTIONS[i]}"' for i in range(3)]
    (path / "metadata.csv").write_text("\n".join(["file_name,caption", *lines]) + "\n", encoding="utf-8")
    return path


def as_parquet(path):
    path.mkdir()
    table = pa.table({"caption": CAPTIONS, "image": [{"bytes": p, "path": None} for p in PICTURES]})
    pq.write_table(table, path / "train-00000.parquet", row_group_size=2)
    return path


def as_plain_parquet(path):
    path.mkdir()
    pq.write_table(pa.table({"TEXT": CAPTIONS, "jpg": PICTURES}), path / "rows.parquet")
    return path / "rows.parquet"


def as_arrow(path):
    """As `datasets` saves: a stream file in a split's folder."""
    (path / "train").mkdir(parents=True)
    (path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    table = pa.table({"image": [{"bytes": p, "path": f"p{i}.png"} for i, p in enumerate(PICTURES)], "text": CAPTIONS})
    with pa.ipc.new_stream(path / "train" / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def as_tar(path):
    path.mkdir()
    members = [m for i in range(3) for m in ((f"{i:05d}.png", PICTURES[i]), (f"{i:05d}.txt", CAPTIONS[i].encode()))]
    return tar_of(path / "00000.tar", members).parent


def as_json_tar(path):
    path.mkdir()
    members = []
    for i in range(3):
        members += [(f"a/{i}.img.png", PICTURES[i]), (f"a/{i}.json", json.dumps({"caption": CAPTIONS[i]}).encode())]
    return tar_of(path / "00000.tgz", members)


FORMS = [as_text_files, as_metadata, as_csv, as_parquet, as_plain_parquet, as_arrow, as_tar, as_json_tar]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form, tmp_path):
    """Captions of any script with the pictures they belong to."""
    rows, skipped = read(form(tmp_path / "source"), tmp_path)
    expected, _ = read(as_text_files(tmp_path / "expected"), tmp_path / "other")
    assert skipped == {}
    assert [(r["caption"], r["pixels"]) for r in rows] == [(r["caption"], r["pixels"]) for r in expected]
    assert len({r["row"] for r in rows}) == len({r["id"] for r in rows}) == 3


@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_found_again_by_row(form, tmp_path):
    """The second reading, for the page, opens the files of the rows it is asked for."""
    source = form(tmp_path / "source")
    rows, _ = read(source, tmp_path)
    wanted = {rows[0]["row"], rows[2]["row"]}
    assert dict(picture_files(pieces(source), wanted)) == {rows[0]["row"]: PICTURES[0], rows[2]["row"]: PICTURES[2]}


def test_captions_alone_are_a_source(tmp_path):
    """A table without pictures is audited for its words."""
    pq.write_table(pa.table({"caption": CAPTIONS, "url": ["u"] * 3}), tmp_path / "c.parquet")
    rows, skipped = read(tmp_path / "c.parquet", tmp_path)
    assert [r["caption"] for r in rows] == CAPTIONS
    assert [r["pixels"] for r in rows] == [None] * 3
    assert skipped == {}


def test_what_is_read_is_not_read_again(tmp_path, monkeypatch):
    """A shard that is there is whole."""
    source = as_text_files(tmp_path / "source")
    read(source, tmp_path)
    monkeypatch.setattr("unmemorize.data.intake.file_looks", lambda *given: 1 / 0)
    assert len(read(source, tmp_path)[0]) == 3


def test_a_shard_cut_short_leaves_nothing(tmp_path, monkeypatch):
    """Neither a half file nor a marker that it is whole."""
    monkeypatch.setattr("unmemorize.data.intake.file_looks", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(as_text_files(tmp_path / "source"), tmp_path)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def bomb() -> bytes:
    """A PNG of a few dozen bytes that claims more pixels than any picture has."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    side = int(MAX_PIXELS**0.5) + 1
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD = {
    "truncated": (PICTURES[0][: len(PICTURES[0]) // 2], "a caption", "picture cannot be read"),
    "garbage": (b"not a picture", "a caption", "picture cannot be read"),
    "empty": (b"", "a caption", "empty file"),
    "bomb": (bomb(), "a caption", "decompression bomb"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a caption", "picture cannot be read"),
    "megabyte": (PICTURES[0], "x " * 500_000, "caption too long"),
    "long": (PICTURES[0], "x" * (MAX_CAPTION + 1), "caption too long"),
    "latin": (PICTURES[0], b"caf\xe9", "caption is not UTF-8"),
    "blank": (PICTURES[0], " \n", "empty caption"),
}


def encoded(caption):
    return caption if isinstance(caption, bytes) else caption.encode()


def bad_folder(path):
    return folder_of(path, [("good", PICTURES[1], "fine"), *((n, p, c) for n, (p, c, _) in BAD.items())])


def bad_tar(path):
    path.mkdir()
    members = [("good.png", PICTURES[1]), ("good.txt", b"fine")]
    for name, (picture, caption, _) in BAD.items():
        members += [(f"{name}.png", picture), (f"{name}.txt", encoded(caption))]
    return tar_of(path / "a.tar", members)


def bad_parquet(path):
    path.mkdir()
    rows = {"good": (PICTURES[1], "fine", "")} | BAD
    table = pa.table(
        {
            "id": list(rows),
            "image": [picture for picture, _, _ in rows.values()],
            "caption": pa.array([encoded(caption) for _, caption, _ in rows.values()], pa.binary()),
        }
    )
    pq.write_table(table, path / "a.parquet")
    return path


@pytest.mark.parametrize("form", [bad_folder, bad_tar, bad_parquet])
def test_bad_rows_are_skipped_with_their_reason(form, tmp_path):
    """Each bad row is named once with what is wrong; the good one is read."""
    rows, skipped = read(form(tmp_path / "source"), tmp_path)
    assert sorted(r["id"].rpartition("/")[2].removesuffix(".png") for r in rows) == ["blank", "good"]
    assert {r["caption"] for r in rows} == {"fine", None}
    found = {os.path.basename(name).removesuffix(".png"): reason for name, reason in skipped.items()}
    assert found == {name: reason for name, (_, _, reason) in BAD.items() if name != "blank"}


def test_missing_pairs_are_skipped(tmp_path):
    """A caption without a picture, metadata of a file that is not there; a picture without a caption is read."""
    source = folder_of(tmp_path / "source", [("alone", PICTURES[0], None), ("orphan", None, "a caption")])
    metadata(source, [{"file_name": "gone.png", "text": "x"}, {"file_name": "alone.png"}, {"text": "of what?"}])
    rows, skipped = read(source, tmp_path)
    assert [(r["id"], r["caption"]) for r in rows] == [("alone.png", None)]
    assert skipped == {
        "gone.png": "no such picture",
        "metadata.jsonl, line 3": "no file_name",
        "orphan.txt": "caption without a picture",
    }


def test_missing_pairs_in_a_tar(tmp_path):
    """The same of an archive."""
    source = tar_of(tmp_path / "a.tar", [("alone.png", PICTURES[0]), ("orphan.txt", b"a caption"), ("none.npy", b"x")])
    rows, skipped = read(source, tmp_path)
    assert [(r["id"], r["caption"]) for r in rows] == [("a/alone", None)]
    expected = {"a/orphan": "caption without a picture", "a/none": "no picture"}
    assert skipped == expected


def test_tars_that_climb_out_of_the_folder(tmp_path):
    """Paths with .., absolute paths, links and devices are refused; nothing appears outside."""
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    source = tmp_path / "source"
    source.mkdir()
    with tarfile.open(source / "a.tar", "w") as tar:

        def add(name, content=b"", **more):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))

        add("../escape.png", PICTURES[0])
        add(str(tmp_path / "absolute.png"), PICTURES[0])
        add("..\\windows.png", PICTURES[0])
        add("link.png", type=tarfile.SYMTYPE, linkname=str(outside))
        add("hard.txt", type=tarfile.LNKTYPE, linkname="../secret.txt")
        add("device.png", type=tarfile.CHRTYPE)
        add("good.png", PICTURES[1])
        add("good.txt", b"fine")
    before = sorted(tmp_path.rglob("*"))
    rows, skipped = read(source, tmp_path)
    assert [r["caption"] for r in rows] == ["fine"]
    assert sorted(skipped.values()) == ["not a plain file"] * 3 + ["path leaves the folder"] * 3
    assert {p for p in tmp_path.rglob("*") if "run" not in p.relative_to(tmp_path).parts} == set(before)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "..\\secret.png", "link.png"])
def test_metadata_that_climbs_out_of_the_folder(tmp_path, name):
    """A file name may not leave the folder, not by a link either."""
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    source = folder_of(tmp_path / "source", [])
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    metadata(source, [{"file_name": name, "text": "x"}])
    rows, skipped = read(source, tmp_path)
    assert rows == []
    assert skipped[name] == "path leaves the folder"


def test_a_table_may_not_name_files_elsewhere(tmp_path):
    """A picture's path in a table stays in the table's folder."""
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    source = tmp_path / "source"
    source.mkdir()
    (source / "here.png").write_bytes(PICTURES[1])
    images = [{"bytes": None, "path": path} for path in ("../secret.png", "here.png", "gone.png", None)]
    pq.write_table(pa.table({"id": list("abcd"), "caption": ["x"] * 4, "image": images}), source / "a.parquet")
    rows, skipped = read(source, tmp_path)
    assert [r["id"] for r in rows] == ["b"]
    assert skipped == {"a": "path leaves the folder", "c": "no such picture", "d": "no picture"}


def test_a_cell_that_is_no_picture_is_none(tmp_path):
    """Text, numbers and lists where the bytes or the path of a picture belong."""
    for image in ({"bytes": "text"}, {"bytes": [1, 2], "path": "a"}, {"bytes": None, "path": 3.5}):
        source = tmp_path / str(len(list(tmp_path.iterdir())))
        source.mkdir()
        pq.write_table(pa.table({"caption": ["x"], "image": [image]}), source / "a.parquet")
        rows, skipped = read(source, source)
        assert [(row["caption"], row["pixels"]) for row in rows] + list(skipped.values()) in (
            [("x", None)],
            ["no picture"],
        )


@pytest.mark.parametrize("size", [2**40, 2**60, 2**63 - 1])
@pytest.mark.parametrize("ending", [".tar", ".tgz"])
def test_a_header_that_claims_exabytes_is_over_at_once(size, ending, tmp_path):
    """What a file in an archive is said to have is not looked for behind the archive's end."""
    header = tarfile.TarInfo("b.png")
    header.size = size
    archive = tar_of(tmp_path / "a.tar", [("a.png", PICTURES[0]), ("a.txt", b"fine")]).read_bytes()
    content = archive[: archive.index(b"\0" * 1024) // 512 * 512 + 512] + header.tobuf(tarfile.GNU_FORMAT)
    path = tmp_path / f"claims{ending}"
    path.write_bytes(content if ending == ".tar" else gzip.compress(content))
    rows, skipped = read(path, tmp_path)
    assert [row["caption"] for row in rows] == ["fine"]
    assert "archive cannot be read to its end" in skipped.values()


def test_a_link_to_itself_is_skipped(tmp_path):
    """As a picture, as a caption, as metadata."""
    source = folder_of(tmp_path / "source", [("a", PICTURES[0], "fine"), ("c", PICTURES[1], None)])
    for name in ("b.png", "c.txt", "metadata.jsonl"):
        (source / name).symlink_to(name)
    rows, skipped = read(source, tmp_path)
    assert [row["id"] for row in rows] == ["a.png"]
    assert set(skipped) == {"b.png", "c.png", "metadata.jsonl"}
    assert set(skipped.values()) == {"a link to itself, not a file"}


def test_broken_files_do_not_stop_the_others(tmp_path):
    """A truncated archive, a truncated table and text under a false name are each counted."""
    source = as_tar(tmp_path / "tars")
    whole = (source / "00000.tar").read_bytes()
    (source / "cut.tar").write_bytes(whole[: len(whole) // 3])
    (source / "text.tar").write_text("not an archive")
    rows, skipped = read(source, tmp_path / "one")
    assert len(rows) >= 3
    assert "archive cannot be read to its end" in skipped.values()
    tables = as_parquet(tmp_path / "tables")
    (tables / "false.parquet").write_text("not a table")
    rows, skipped = read(tables, tmp_path / "two")
    assert len(rows) == 3
    assert list(skipped.values()) == ["file cannot be read"]


def test_broken_metadata_lines_are_skipped(tmp_path):
    """Lines that are no JSON, no object, or not UTF-8 are counted; the others are read."""
    source = folder_of(tmp_path / "source", [("a", PICTURES[0], None)])
    lines = [b"{", b"[1]", b'{"file_name": "a.png", "text": "fine"}', b'{"file_name": "b.png", "text": "caf\xe9"}']
    lines.append(b'{"file_name": "c.png", "text": "\\ud800"}')
    (source / "metadata.jsonl").write_bytes(b"\n".join(lines))
    rows, skipped = read(source, tmp_path)
    assert [r["caption"] for r in rows] == ["fine"]
    assert sorted(skipped.values()) == ["no such picture"] * 2 + ["not a JSON object"] * 2


def test_bytes_that_are_no_text_in_a_csv(tmp_path):
    """The row is skipped and not the table."""
    source = folder_of(tmp_path / "source", [("a", PICTURES[0], None), ("b", PICTURES[1], None)])
    (source / "metadata.csv").write_bytes(b"file_name,text\na.png,caf\xe9\nb.png,fine\n")
    rows, skipped = read(source, tmp_path)
    assert [r["caption"] for r in rows] == ["fine"]
    assert skipped == {"a.png": "caption is not UTF-8"}


def test_names_of_any_bytes(tmp_path):
    """A file name that is no UTF-8 is kept in a form that can be stored."""
    source = folder_of(tmp_path / "source", [])
    with open(os.fsencode(source) + b"/caf\xe9.png", "wb") as file:
        file.write(PICTURES[0])
    with open(os.fsencode(source) + b"/caf\xe9.txt", "w") as file:
        file.write("fine")
    rows, _ = read(source, tmp_path)
    assert rows[0]["id"] == "caf\\udce9.png"


@pytest.mark.parametrize(("make", "says"), [
    (lambda p: p / "none", "no such file or folder"),
    (lambda p: p, "nothing to read in it"),
    (lambda p: (p / "notes.md", (p / "notes.md").write_text("x"))[0], "nothing to read in it"),
])  # fmt: skip
def test_nothing_to_read_is_a_mistake(tmp_path, make, says):
    """What cannot be a source is one line."""
    with pytest.raises(UserError, match=says):
        pieces(make(tmp_path))


def test_a_missing_caption_column_lists_those_there_are(tmp_path):
    """The column can be named."""
    pq.write_table(pa.table({"title": CAPTIONS, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match="no column named prompt, caption, text: it has title, n; name one with --column"
    ):
        pieces(tmp_path)
    with pytest.raises(UserError, match="no column 'words'"):
        pieces(tmp_path, "words")
    assert [r["caption"] for r in read(tmp_path / "a.parquet", tmp_path, "Title")[0]] == CAPTIONS


def test_large_and_unusual_pictures(tmp_path):
    """Grey, transparent, palette and rotated pictures are read as what a viewer shows."""
    source = folder_of(tmp_path / "source", [])
    upright = draw(1)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(source / "turned.png", exif=exif)
    upright.save(source / "upright.png")
    for mode in ("L", "P", "RGBA", "I;16", "1"):
        (upright.convert("L") if mode == "I;16" else upright.convert(mode)).save(source / f"{mode[0]}{len(mode)}.png")
    for file in source.glob("*.png"):
        file.with_suffix(".txt").write_text(file.stem)
    rows, skipped = read(source, tmp_path)
    assert skipped == {}
    pixels = {r["caption"]: r["pixels"] for r in rows}
    assert pixels["turned"] == pixels["upright"]
