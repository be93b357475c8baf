"""Sources as people have them: the same file gives the same captions and pictures to every command."""

from __future__ import annotations

import io
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data_pictures import draw, example, folder_of, framed, png, tar_of
from unmemorize.core.errors import UserError
from unmemorize.data.captions import pieces
from unmemorize.data.intake import picture_files, read_pieces, rows_of, skipped_of
from unmemorize.data.source import read_prompts, read_references

SIZE = (48, 48)
CAPTIONS = ["red boat", "green hill", "blue lake"]
PICTURES = [png(draw(key)) for key in range(3)]
PIXELS = torch.stack([torch.from_numpy(np.array(draw(key))).permute(2, 0, 1) for key in range(3)])


def pictures_in(folder, count=3, ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for key in range(count):
        (folder / f"{key}.{ending}").write_bytes(PICTURES[key])
    return folder


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def audited(source, tmp_path):
    """What the data audit reads: captions, and the reasons of what it skips."""
    run = tmp_path / "run"
    list(read_pieces(pieces(source), run))
    rows = [row for path in rows_of(run) for row in pq.read_table(path).to_pylist()]
    skipped = [row for path in skipped_of(run) for row in pq.read_table(path).to_pylist()]
    return rows, {row["id"]: row["reason"] for row in skipped}


def nested_metadata(root):
    """An imagefolder of the Hugging Face Hub: metadata in the split's folders, names relative to each."""
    for split, keys in (("train", (0, 1)), ("zest", (2,))):
        (root / split).mkdir(parents=True)
        for key in keys:
            (root / split / f"{key}.png").write_bytes(PICTURES[key])
        rows = [{"file_name": f"{key}.png", "text": CAPTIONS[key]} for key in keys]
        (root / split / "metadata.jsonl").write_text(lines(rows))


def metadata_above(root):
    """One table for several folders; a nearer one goes before it."""
    nested_metadata(root)
    (root / "zest" / "metadata.jsonl").unlink()
    (root / "metadata.csv").write_text("file_name,caption\ntrain/0.png,wrong\nzest/2.png,blue lake\n")


def metadata_csv(root):
    pictures_in(root)
    (root / "metadata.csv").write_text("file_name,text\n0.png,red boat\n1.png,green hill\n2.png,blue lake\n")


def metadata_parquet(root):
    pictures_in(root)
    pq.write_table(pa.table({"file_name": ["0.png", "1.png", "2.png"], "text": CAPTIONS}), root / "metadata.parquet")


def metadata_caption(root):
    """The column may be called caption."""
    pictures_in(root)
    rows = [{"file_name": f"{key}.png", "caption": CAPTIONS[key]} for key in range(3)]
    (root / "metadata.jsonl").write_text(lines(rows))


def windows_metadata(root):
    """A byte order mark, Windows line ends and separators."""
    pictures_in(root / "imgs")
    rows = "".join(f"imgs\\{key}.png,{CAPTIONS[key]}\r\n" for key in range(3))
    (root / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name,text\r\n" + rows.encode())


def dotted_metadata(root):
    pictures_in(root / "imgs")
    rows = [{"file_name": f"./imgs/{key}.png", "text": CAPTIONS[key]} for key in range(3)]
    (root / "metadata.jsonl").write_text("\ufeff" + lines(rows))


def composed_metadata(root):
    """Names whose accents one system composes and the other does not."""
    root.mkdir()
    for key in range(3):
        (root / f"e\u0301{key}.png").write_bytes(PICTURES[key])
    rows = [{"file_name": f"\u00e9{key}.png", "text": CAPTIONS[key]} for key in range(3)]
    (root / "metadata.jsonl").write_text(lines(rows))


def other_case(root):
    """Names whose case Windows does not tell apart, in a column of another name."""
    pictures_in(root)
    (root / "metadata.csv").write_text("image_file_name,text\n0.PNG,red boat\n1.Png,green hill\n")
    (root / "2.TXT").write_text("blue lake")


def joined_metadata(root):
    """Two files with byte order marks, one after the other."""
    pictures_in(root)
    rows = ["\ufeff" + lines([{"file_name": f"{key}.png", "text": CAPTIONS[key]}]) for key in range(3)]
    (root / "metadata.jsonl").write_text("".join(rows))


def sidecars(name):
    def write(root):
        """A repeat folder, as trainers want it, with a caption beside each picture."""
        pictures_in(root / "10_boat")
        for key in range(3):
            (root / "10_boat" / name.format(key)).write_text(CAPTIONS[key] + "\n")

    return write


def marked_sidecars(root):
    """A Windows editor's byte order mark and line end are no part of a caption."""
    pictures_in(root)
    for key in range(3):
        (root / f"{key}.txt").write_bytes(b"\xef\xbb\xbf" + CAPTIONS[key].encode() + b"\r\n")


def img2dataset_files(root):
    """Folders of pictures, with a table of all that was to be downloaded beside them."""
    pictures_in(root / "00000")
    rows = []
    for key, caption in enumerate([*CAPTIONS, "a dead link"]):
        rows.append({"url": f"http://example.org/{key}", "caption": caption, "key": f"{key}", "status": "x"})
        if key < 3:
            (root / "00000" / f"{key}.txt").write_text(caption)
            (root / "00000" / f"{key}.json").write_text(json.dumps(rows[-1] | {"caption": "not this"}))
    pq.write_table(pa.Table.from_pylist(rows), root / "00000.parquet")
    (root / "00000_stats.json").write_text('{"count": 4}')


def json_beside(root):
    pictures_in(root)
    for key in range(3):
        (root / f"{key}.json").write_text(json.dumps({"caption": CAPTIONS[key], "width": 48}))


def arrow(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def picture_table():
    return pa.table({"image": [{"bytes": content, "path": None} for content in PICTURES], "text": CAPTIONS})


def saved_dataset(root):
    """`save_to_disk`, and what a later `map` and `shuffle` cached in its folder."""
    arrow(root / "data-00000-of-00001.arrow", picture_table())
    arrow(root / "cache-2d0a802b78a30b76.arrow", picture_table())
    arrow(root / "older-00000-of-00001.arrow", picture_table())
    arrow(root / "cache-7f00000000000001.arrow", pa.table({"indices": pa.array([2, 0, 1], pa.uint64())}))
    (root / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def dataset_cache(root):
    """The folder that `load_dataset` caches in has no `state.json`."""
    place = root / "default" / "0.0.0" / "0f1e2d"
    arrow(place / "boats-train.arrow", picture_table())
    arrow(place / "cache-2d0a802b78a30b76.arrow", picture_table())
    (place / "dataset_info.json").write_text("{}")


def hub_cache(root):
    """A snapshot is a folder of links to blobs beside it."""
    blobs, place = root / "blobs", root / "snapshots" / "0f1e2d"
    blobs.mkdir(parents=True)
    place.mkdir(parents=True)
    rows = lines({"file_name": f"{key}.png", "text": CAPTIONS[key]} for key in range(3))
    contents = {f"{key}.png": PICTURES[key] for key in range(3)} | {"metadata.jsonl": rows.encode()}
    for number, (name, content) in enumerate(contents.items()):
        (blobs / f"b{number}").write_bytes(content)
        (place / name).symlink_to(f"../../blobs/b{number}")
    return place


def parquet(root):
    root.mkdir()
    pq.write_table(picture_table(), root / "train-00000.parquet", row_group_size=2)


def tar(root):
    root.mkdir()
    members = []
    for key in range(3):
        members += [(f"./{key}.png", PICTURES[key]), (f"./{key}.caption", CAPTIONS[key].encode())]
    tar_of(root / "00000.tar", [*members, ("._0.png", b"of macOS")])


def coco(root):
    """Annotations beside the folder of pictures, several captions each: the first is the picture's."""
    pictures_in(root / "train2017")
    images = [{"id": 10 + key, "file_name": f"{key}.png", "height": 48} for key in range(4)]
    notes = [{"image_id": 10 + key, "id": key, "caption": CAPTIONS[key]} for key in range(3)]
    notes += [{"image_id": 10 + key, "id": 9 + key, "caption": "another"} for key in range(3)]
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": notes}))
    objects = {"images": images, "annotations": [{"image_id": 10, "bbox": [0, 0, 1, 1], "category_id": 1}]}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(objects))


def karpathy(root):
    """COCO's captions as most captioning papers split them."""
    pictures_in(root / "train2014")
    images = [
        {"filename": f"{key}.png", "filepath": "train2014", "sentences": [{"raw": CAPTIONS[key], "tokens": []}]}
        for key in range(3)
    ]
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def dcr(root):
    """Captions by the paths that pictures had on another computer."""
    pictures_in(root / "raw")
    paths = {f"/data/laion_10k/train/raw/{key}.png": [CAPTIONS[key], "another"] for key in range(3)}
    (root / "laion_combined_captions.json").write_text(json.dumps(paths))


def kohya_document(root):
    """Names without endings, and below them captions, tags and sizes."""
    pictures_in(root)
    entries = {str(key): {"caption": CAPTIONS[key], "train_resolution": [48, 48]} for key in range(3)}
    (root / "meta_lat.json").write_text(json.dumps(entries))


def blip(root):
    """A list of pictures with captions."""
    pictures_in(root / "b")
    rows = [{"image": f"b/{key}.png", "caption": CAPTIONS[key]} for key in range(3)]
    (root / "captions.json").write_text("\ufeff" + json.dumps(rows))


def other_endings(root):
    """What browsers and phones call JPEG, here of what is a PNG."""
    root.mkdir()
    for key, ending in enumerate(("jfif", "jpe", "PNG")):
        (root / f"{key}.{ending}").write_bytes(PICTURES[key])
        (root / f"{key}.txt").write_text(CAPTIONS[key])


def tfrecord(root):
    """img2dataset's, with its table beside it."""
    root.mkdir()
    records = [example(key=b"%09d" % key, jpg=PICTURES[key], txt=CAPTIONS[key].encode(), width=48) for key in range(3)]
    (root / "00000.tfrecord").write_bytes(b"".join(map(framed, records)))
    pq.write_table(pa.table({"caption": CAPTIONS, "url": CAPTIONS}), root / "00000.parquet")


def with_leftovers(root):
    """What systems leave in folders is no picture."""
    metadata_csv(root)
    (root / "._0.png").write_bytes(b"resource fork")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "0.png").write_bytes(b"resource fork")


LAYOUTS = {
    function.__name__: function
    for function in (
        nested_metadata, metadata_above, metadata_csv, metadata_parquet, metadata_caption, windows_metadata,
        dotted_metadata, composed_metadata, other_case, joined_metadata, marked_sidecars,
        img2dataset_files, json_beside, saved_dataset,
        dataset_cache, hub_cache, parquet, tar, with_leftovers,
        coco, karpathy, dcr, kohya_document, blip, other_endings, tfrecord,
    )
} | {name: sidecars(name) for name in ("{}.txt", "{}.caption", "{}.text", "{}.png.txt", "{}.png.caption")}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_alike_by_every_command(layout, tmp_path):
    """The data audit's rows, and the training pictures of the other commands: each picture with its caption."""
    source = LAYOUTS[layout](tmp_path / "source") or tmp_path / "source"
    rows, skipped = audited(source, tmp_path)
    assert skipped == {}
    assert [row["caption"] for row in rows] == CAPTIONS
    contents = dict(picture_files(pieces(source), {row["row"] for row in rows}))
    assert list(contents.values()) == PICTURES
    references = read_references(source, SIZE)
    assert references.captions == tuple(CAPTIONS)
    assert torch.equal(references.pixels, PIXELS)


def test_what_the_caption_came_from_is_kept(tmp_path):
    """The kind of file is in the row: one may have meant another."""
    sidecars("{}.caption")(tmp_path / "source")
    (tmp_path / "source" / "10_boat" / "1.txt").write_text("green hill")
    rows, _ = audited(tmp_path / "source", tmp_path)
    assert [row["captioned_by"] for row in rows] == [".caption", ".txt", ".caption"]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet", "metadata.jsonl", "tar"])
def test_one_rule_chooses_the_caption_column(form, tmp_path):
    """Of `text`, `caption` and `prompt` the prompt is read, whoever reads it; the column can be named."""
    row = {"text": "t", "caption": "c", "prompt": "p"}
    path = tmp_path / "source" / (form if "." in form else f"rows.{form}")
    path.parent.mkdir()
    if form.endswith("jsonl"):
        path.write_text(lines([row | {"file_name": "0.png"}]))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif form == "tar":
        tar_of(path, [("0.png", PICTURES[0]), ("0.json", json.dumps(row).encode())])
    else:
        mark = "," if form == "csv" else "\t"
        path.write_text(mark.join(row) + "\n" + mark.join(row.values()) + "\n")
    if form == "metadata.jsonl":
        pictures_in(path.parent, 1)
        assert read_references(path.parent, SIZE).captions == ("p",)
    assert [prompt.text for prompt in read_prompts(path)] == ["p"]
    assert [item["caption"] for item in audited(path.parent, tmp_path)[0]] == ["p"]
    if form != "tar":
        assert [prompt.text for prompt in read_prompts(path, "Caption")] == ["c"]


def test_what_is_missing_is_counted_and_said(tmp_path, caplog):
    """Pictures without a usable caption are kept, captions without a picture are not: one line says how many."""
    source = folder_of(tmp_path / "source", [("a", PICTURES[0], "fine"), ("b", PICTURES[1], b"caf\xe9")])
    folder_of(source, [("c", PICTURES[2], None), ("d", None, "orphan")])
    (source / "metadata.csv").write_text("file_name,text\ngone.png,x\n")
    with caplog.at_level(logging.WARNING, "unmemorize"):
        references = read_references(source, SIZE)
    assert references.captions == ("fine", None, None)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"{source}: 3 pictures; ")
    for reason in ("caption is not UTF-8", "no caption", "no such picture", "caption without a picture"):
        assert f"1 × {reason}" in said


def test_a_link_to_a_folder_is_named(tmp_path):
    """It is not followed, and not passed over in silence."""
    source = folder_of(tmp_path / "source", [("a", PICTURES[0], "fine")])
    (source / "more").symlink_to(folder_of(tmp_path / "elsewhere", [("b", PICTURES[1], "b")]))
    rows, skipped = audited(source, tmp_path)
    assert [row["caption"] for row in rows] == ["fine"]
    assert skipped == {"more": "link to a folder"}


def test_a_link_out_of_the_folder_is_one_line(tmp_path):
    """Training pictures that lie elsewhere are neither read nor left out in silence."""
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    source = folder_of(tmp_path / "source", [("a", PICTURES[1], "fine")])
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"link\.png: path leaves the folder"):
        read_references(source, SIZE)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode, tmp_path):
    """Silhouettes whose shape is in the alpha channel alone are different pictures, black on white."""
    y, x = np.mgrid[:48, :48]
    shapes = [abs(x - 24) + abs(y - 24) < 20, (x > 10) & (x < 20), y > 25]
    (tmp_path / "source").mkdir()
    for key, shape in enumerate(shapes):
        if mode == "P":
            image = Image.fromarray(shape.astype(np.uint8), "P")
            image.putpalette([0] * 6)
            image.save(tmp_path / "source" / f"{key}.png", transparency=bytes([0, 255]))
        else:
            channels = np.zeros((48, 48, len(mode)), np.uint8)
            channels[..., -1] = shape * 255
            Image.fromarray(channels, mode).save(tmp_path / "source" / f"{key}.png")
        (tmp_path / "source" / f"{key}.txt").write_text(f"icon {key}")
    expected = torch.stack([torch.from_numpy(~shape * np.uint8(255)).expand(3, -1, -1) for shape in shapes])
    assert torch.equal(read_references(tmp_path / "source", SIZE).pixels, expected)
    rows, _ = audited(tmp_path / "source", tmp_path)
    assert len({row["pixels"] for row in rows}) == 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_read_as_eight(kind, tmp_path):
    """A grey picture of 16 bits keeps its grey values: it is not white wherever it exceeds 255."""
    grey = np.array(draw(1).convert("L"))
    folder_of(tmp_path, [("a", None, "grey")])
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png", kind)
    pixels = read_references(tmp_path, SIZE).pixels[0]
    assert torch.equal(pixels, torch.from_numpy(grey).expand(3, -1, -1))


def test_a_large_text_in_a_picture_is_no_reason(tmp_path):
    """A workflow and an XMP record that unpack to megabytes: the picture is read."""
    notes = PngInfo()
    notes.add_text("workflow", "node " * 400_000, zip=True)
    notes.add_itxt("XML:com.adobe.xmp", "<x/>" * 400_000, zip=True)
    buffer = io.BytesIO()
    draw(0).save(buffer, "PNG", pnginfo=notes)
    source = folder_of(tmp_path / "source", [("0", buffer.getvalue(), "boat")])
    assert torch.equal(read_references(source, SIZE).pixels[0], PIXELS[0])
    assert len(audited(source, tmp_path)[0]) == 1


def test_a_name_stands_for_the_picture_that_shares_most_of_its_path(tmp_path):
    """Two folders have a picture of one name; a name that may mean either means none."""
    for place in ("a", "b"):
        pictures_in(tmp_path / "source" / place, 1)
    names = {"/old/set/b/0.png": "of b", "/old/set/a/0.png": "of a", "0.png": "of either", "gone.png": "of none"}
    (tmp_path / "source" / "captions.json").write_text(json.dumps(names))
    rows, skipped = audited(tmp_path / "source", tmp_path)
    assert [row["caption"] for row in rows] == ["of a", "of b"]
    assert skipped == dict.fromkeys(("0.png", "gone.png"), "no such picture")


@pytest.mark.parametrize(
    "document",
    [{"count": 4, "status": "done"}, [1, 2], [], {}, {"images": []}, {"images": [{"id": 1}], "annotations": [None]}, 3],
)
def test_json_that_holds_no_captions_is_none(document, tmp_path):
    """Beside pictures it is passed over; as a list of prompts it is refused."""
    source = folder_of(tmp_path / "source", [("a", PICTURES[0], "fine"), ("b", PICTURES[1], None)])
    (source / "0_stats.json").write_text(json.dumps(document))
    rows, skipped = audited(source, tmp_path)
    assert [row["caption"] for row in rows] == ["fine", None]
    assert skipped == {}
    with pytest.raises(UserError, match="no captions in it"):
        read_prompts(source / "0_stats.json")


@pytest.mark.parametrize(
    ("document", "column"),
    [
        (["a", "b"], ""),
        ({"1.png": ["a", "b"]}, ""),
        ({"images": [], "annotations": [{"caption": "a"}, {"caption": "b"}]}, ""),
        ([{"blip": "a"}, {"blip": "b"}], "blip"),
    ],
)
def test_every_caption_of_a_document_is_a_prompt(document, column, tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps(document))
    assert [prompt.text for prompt in read_prompts(path, column)] == ["a", "b"]


def test_pictures_of_other_formats_are_counted(tmp_path, caplog):
    """A telephone's pictures beside others are not passed over in silence."""
    source = folder_of(tmp_path / "source", [("a", PICTURES[0], "fine")])
    (source / "b.HEIC").write_bytes(b"a phone's")
    (source / "c.svg").write_text("<svg/>")
    assert audited(source, tmp_path)[1] == dict.fromkeys(("b.HEIC", "c.svg"), "picture of another format")
    with caplog.at_level(logging.WARNING, "unmemorize"):
        assert len(read_references(source, SIZE).captions) == 1
    assert "2 × picture of another format" in caplog.records[0].getMessage()


@pytest.mark.parametrize("kept", [5, 12, 40, -20])
def test_records_that_break_off_are_named(kept, tmp_path):
    """The examples before the break are read."""
    whole = framed(example(key=b"0", png=PICTURES[0], txt=b"red boat"))
    (tmp_path / "a.tfrecord").write_bytes(whole + whole[:kept])
    rows, skipped = audited(tmp_path / "a.tfrecord", tmp_path)
    assert [row["caption"] for row in rows] == ["red boat"]
    assert skipped == {"a.tfrecord:1": "archive cannot be read to its end"}


@pytest.mark.parametrize("length", [2**40, 2**63])
def test_a_record_that_claims_terabytes_is_over_at_once(length, tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(length.to_bytes(8, "little") + bytes(100))
    assert audited(tmp_path / "a.tfrecord", tmp_path)[1] == {"a.tfrecord:0": "archive cannot be read to its end"}
