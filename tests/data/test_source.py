"""Prompts and training pictures as people have them."""

from __future__ import annotations

import csv
import json
import struct
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from unmemorize.core.errors import UserError
from unmemorize.data import source
from unmemorize.data.pictures import load_image, save_image
from unmemorize.data.source import Prompt, Stored, read_prompts, read_references

HTML = 'The <b>Old</b> Man &amp; the "Sea"; a print, 12&#8243;'


def texts(path, column=None):
    return [p.text for p in read_prompts(path, column)]


def write(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return path


def test_wen_jsonl(tmp_path):
    """One object a line with `caption`, `index` and `url`; blank lines are nothing."""
    captions = ["Sony Boss, 2013", HTML, "日本"]
    rows = [{"caption": c, "index": i, "url": "https://x/1.jpg"} for i, c in enumerate(captions)]
    path = write(tmp_path / "mem.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n")
    assert texts(path) == captions


def test_nemo_csv(tmp_path):
    """Semicolons, an unnamed index, `Caption` beside other columns, quoted semicolons and HTML."""
    quoted = '"' + HTML.replace('"', '""') + '"'
    lines = [";Caption;URL;type", f"0;{quoted};http://x/?a=1,2;VM", "17;Plain, with commas;http://y;TM"]
    assert texts(write(tmp_path / "nemo.csv", "\n".join(lines) + "\n")) == [HTML, "Plain, with commas"]


def test_caption_first_csv(tmp_path):
    """`Caption;URL;type` without an index reads as well, with Windows line ends and a byte order mark."""
    path = write(tmp_path / "a.csv", "Caption;URL;type\r\none;u;VM\r\nthree;u;VM\r\n", "utf-8-sig")
    assert texts(path) == ["one", "three"]


def test_membench_csv(tmp_path):
    """`,prompt,urls` with list-like strings in the last column."""
    content = ",prompt,urls\n0,\"A, B and C\",\"['http://a', 'http://b']\"\n1,plain,[]\n"
    assert texts(write(tmp_path / "m.csv", content)) == ["A, B and C", "plain"]


def test_csv_and_multiline_cells(tmp_path):
    """A caption that spans two lines inside quotes."""
    assert texts(write(tmp_path / "a.csv", 'id,text\n1,"two\nlines"\n2,b\n')) == ["two\nlines", "b"]


def test_a_quote_in_tsv_is_a_letter(tmp_path):
    """Tab-separated: an opened quote swallows no row below, balanced quotes around a cell are none of it."""
    path = write(tmp_path / "a.tsv", 'caption\turl\nred\tu\n"never closed\tu\n12" disc\tu\n"quoted ""so"", with"\tu\n')
    assert texts(path) == ["red", '"never closed', '12" disc', 'quoted "so", with']


def test_commas_in_tsv_are_letters(tmp_path):
    """Tabs separate whatever the header holds."""
    assert texts(write(tmp_path / "a.tsv", "caption\na cat, a dog\nred, blue\n")) == ["a cat, a dog", "red, blue"]
    assert texts(write(tmp_path / "b.tsv", "caption\tsource, licence, author\na cat\tx, y, z\n")) == ["a cat"]
    assert texts(write(tmp_path / "c.csv", "caption;source, licence, author\na cat;x, y\n")) == ["a cat"]


@pytest.mark.parametrize("content", ['id\ttext\n1\ta\n2\t"two\nlines"\n', 'text\na\n"two\nlines"\n'])
def test_a_line_break_in_a_tsv_cell_names_its_row(tmp_path, content):
    """Half a caption is no prompt."""
    refused(write(tmp_path / "a.tsv", content), "row 2: a cell with a line break in it")


@pytest.mark.parametrize("content", ['prompt,url\na,u\n"never closed,u\nb,u\n', 'prompt,url\na,u\n"b" c,u\n'])
def test_quotes_that_do_not_match_in_csv_name_their_row(tmp_path, content):
    """They would swallow the rows below, or lose the quotes."""
    refused(write(tmp_path / "a.csv", content), "row 2: quotes that do not match")


def test_text_without_a_last_newline(tmp_path):
    """One prompt a line; the last needs no newline, and a byte order mark belongs to no prompt."""
    assert texts(write(tmp_path / "p.txt", "first\r\nsecond, with; signs\nlast", "utf-8-sig")) == [
        "first",
        "second, with; signs",
        "last",
    ]


def test_parquet(tmp_path):
    """A Parquet table's caption column, whatever else it holds."""
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": [1, 2], "TEXT": ["a", HTML], "image": [b"\xff", None]}), path)
    assert texts(path) == ["a", HTML]


def test_the_column_can_be_named(tmp_path):
    """A column of another name is read when it is asked for, in any case; by itself `prompt` goes before `caption`."""
    path = write(tmp_path / "a.csv", "caption,Prompt,Alt Text\nc,p,x\n")
    assert texts(path) == ["p"]
    assert texts(path, "alt text") == ["x"]
    assert texts(path, "Caption") == ["c"]


def test_equal_prompts_are_read_once_and_numbered_in_order(tmp_path):
    """A repeated prompt is one prompt, at its first place; names are unique and sort in file order."""
    found = read_prompts(write(tmp_path / "p.txt", "b\na\nb\nc\n"))
    assert [p.text for p in found] == ["b", "a", "c"]
    assert [p.id for p in found] == sorted({p.id for p in found})
    assert all(p.kind is p.copies is p.memorable is p.cluster is None for p in found)


@pytest.mark.parametrize("length", [0, 1, 10_000])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_prompts_of_any_length(tmp_path, length, form):
    """An empty prompt and one of ten thousand characters are prompts like any other."""
    path = tmp_path / f"p.{form}"
    save(path, ["before", "é" * length])
    assert texts(path) == ["before", "é" * length]


def test_a_very_long_line_of_text(tmp_path):
    """Ten thousand characters on one line are one prompt."""
    assert texts(write(tmp_path / "p.txt", "é" * 10_000)) == ["é" * 10_000]


def save(path, prompts):
    match path.suffix:
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([["id", "prompt"], *enumerate(prompts)])
        case ".jsonl":
            path.write_text("".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts), "utf-8")
        case ".parquet":
            pq.write_table(pa.table({"prompt": pa.array(prompts, pa.string())}), path)
        case ".txt":
            path.write_bytes("\n".join(prompts).encode())


SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei"
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@example(prompts=[SEPARATORS, "\u202e\U0001f468\u200d\U0001f680", "\x00\n\r\n"])
@given(prompts=st.lists(any_text, min_size=1, max_size=5, unique=True))
def test_any_unicode_survives(tmp_path_factory, form, prompts):
    """Every character is read back as it was written: controls, unusual line separators, any script, any emoji."""
    path = tmp_path_factory.getbasetemp() / f"any.{form}"
    save(path, prompts)
    assert texts(path) == prompts


@example(prompts=[SEPARATORS, "b"])
@given(
    prompts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), min_size=1, max_size=30),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_any_unicode_but_newlines_survives_in_text(tmp_path_factory, prompts):
    """A line ends at a newline only: not at U+2028, U+0085 or a form feed, which captions from the web do hold."""
    path = tmp_path_factory.getbasetemp() / "any.txt"
    save(path, prompts)
    assert texts(path) == prompts


def refused(path, match, column=None):
    with pytest.raises(UserError, match=match) as error:
        read_prompts(path, column)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    """What is not there, or is a folder, is one line with the kinds of file there are."""
    refused(tmp_path / "none.csv", r"no such file: name a \.txt, \.csv")
    refused(tmp_path, "a folder, not a file")


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl"])
def test_an_empty_file_is_named(tmp_path, name):
    """A file without a prompt is an error, not an audit of nothing."""
    refused(write(tmp_path / name, ""), "no prompts in it")


def test_a_header_alone_is_no_prompt(tmp_path):
    """A table without rows is an error, too."""
    refused(write(tmp_path / "a.csv", "prompt,url\n"), "no prompts in it")
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "no prompts in it")


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "café"), ("a.csv", "prompt,x\ncafé,1\n"), ("a.jsonl", '{"prompt": "café"}')]
)
def test_another_encoding_is_refused_not_guessed(tmp_path, name, content):
    """Latin-1 bytes are one line that says where and what to do."""
    refused(write(tmp_path / name, content, "latin-1"), r"(row|line) 1: caption is not UTF-8: save the file as UTF-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "id;title\n1;x\n"), ("a.jsonl", '{"id": 1, "title": "x"}\n'), ("a.tsv", "id\ttitle\n1\tx\n")],
)
def test_a_missing_caption_column_lists_those_there_are(tmp_path, name, content):
    """Without a known or the named column, the message lists the file's columns and the option to name one."""
    path = write(tmp_path / name, content)
    refused(path, r"no column named prompt, caption, text: it has id, title; name one with --column")
    refused(path, r"no column 'caption': it has id, title", "caption")


@pytest.mark.parametrize("value", ["5", "null", "[1]", '{"a": 1}', "true"])
def test_a_value_that_is_no_text_names_its_row(tmp_path, value):
    """A number or nothing where a caption should be is named by file and row."""
    path = write(tmp_path / "a.jsonl", f'{{"prompt": "ok"}}\n{{"prompt": {value}}}\n')
    refused(path, "line 2: (caption is not text|no caption): correct or delete the row")


def test_a_row_without_the_column_names_its_row(tmp_path):
    """A CSV row that is too short and a JSON row without the key are named."""
    refused(write(tmp_path / "a.csv", "id,prompt\n1,a\n2\n"), "row 2: no caption")
    refused(write(tmp_path / "a.jsonl", '{"prompt": "a"}\n{"other": "b"}\n'), "line 2: no caption")


def test_text_that_holds_the_delimiter_unquoted_is_not_cut(tmp_path):
    """A row with more cells than the header is named: its prompt would be audited without its second half."""
    refused(write(tmp_path / "a.csv", "prompt\na cat\na cat, on a mat\n"), "row 2: more cells than the header")
    assert texts(write(tmp_path / "a.csv", "prompt,url\na cat,x,\n")) == ["a cat"]


def test_bytes_in_parquet_are_utf8(tmp_path):
    """A binary column is read as UTF-8, as the data audit reads it, and as nothing else."""
    pq.write_table(pa.table({"prompt": ["é".encode(), b"b"]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["é", "b"]
    pq.write_table(pa.table({"prompt": [b"a", b"caf\xe9"]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"a\.parquet:0:1: caption is not UTF-8")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    """Which of them is meant is for the user to say; two that are not read are no reason."""
    for names, are_read in ((["prompt", "prompt", "url"], True), (["prompt", "url", "url"], False)):
        if name.endswith("parquet"):
            pq.write_table(pa.Table.from_arrays([["a"], ["b"], ["c"]], names), tmp_path / name)
        else:
            mark = "," if name.endswith("csv") else "\t"
            write(tmp_path / name, f"{mark.join(names)}\n{mark.join('abc')}\n")
        if are_read:
            refused(tmp_path / name, "two columns of one name: rename or delete one of them")
        else:
            assert texts(tmp_path / name) == ["a"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62], pa.timestamp("us")),
        pa.array([2**62], pa.duration("s")),
        pa.array([["a"]]),
        pa.array([10**30], pa.decimal128(38, 0)),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_is_no_text_is_named(tmp_path, column):
    """Also one whose values Python has no type for."""
    pq.write_table(pa.table({"prompt": column}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"a\.parquet:0:0: caption is not text")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_text_of_every_type_is_text(tmp_path, kind):
    """Long strings, views, and strings that are stored once each."""
    table = pa.table({"prompt": pa.array(["a", "é", "a"]).cast(kind)})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert texts(tmp_path / "a.arrow") == ["a", "é"]


def test_cells_that_lie_outside_their_file_are_refused(tmp_path):
    """An Arrow file says itself where its cells lie: what lies elsewhere in the memory is not read."""
    offsets = pa.py_buffer(struct.pack("<iii", 0, 2**28, 2))
    column = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab")])
    with pa.ipc.new_stream(tmp_path / "a.arrow", pa.schema([("prompt", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([column], ["prompt"]))
    refused(tmp_path / "a.arrow", "file cannot be read")


def test_a_page_that_unpacks_to_gigabytes_is_refused(tmp_path):
    """300 MB that are 60 KB in the file; the same prompt a million times is small, as a table stores it."""
    many = pa.table({"prompt": ["a" * 1000] * 100_000 + ["b" * 200_000_000]})
    pq.write_table(many, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    refused(tmp_path / "a.parquet", "file cannot be read")
    pq.write_table(pa.table({"prompt": ["a" * 1000] * 300_000}), tmp_path / "a.parquet")
    assert len(texts(tmp_path / "a.parquet")) == 1


@pytest.mark.parametrize("line", ["{", "not json", "[1, 2]", '"text"'])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    """Broken JSON, and JSON that is no object, are named by line."""
    refused(write(tmp_path / "a.jsonl", '{"prompt": "a"}\n' + line + "\n"), "line 2: not a JSON object")


def test_a_file_with_a_false_ending_is_named(tmp_path):
    """Text that calls itself Parquet is one line."""
    refused(
        write(tmp_path / "a.parquet", "prompt\na\n"),
        "file cannot be read: name another file, or give it its true ending",
    )


def save_picture(path, size=(20, 10), colour=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_pictures_are_read_in_order_at_the_size_asked_for(tmp_path):
    """Pictures of every kind and depth of folder come as (3, h, w) in [0, 1], sorted, under their relative names."""
    save_picture(tmp_path / "b.png", (7, 9), (0, 255, 0))
    save_picture(tmp_path / "a" / "c.JPG", (30, 30), (0, 0, 255))
    Image.new("L", (16, 16), 255).save(tmp_path / "grey.webp", lossless=True)
    (tmp_path / "notes.md").write_text("not a picture")
    found = read_references(tmp_path, (16, 24))
    assert found.names == ("a/c.JPG", "b.png", "grey.webp")
    assert found.images.shape == (3, 3, 16, 24)
    assert torch.allclose(found.images.mean((2, 3)), torch.tensor([[0, 0, 1.0], [0, 1, 0], [1, 1, 1]]), atol=0.02)
    assert found.masks == found.captions == (None, None, None)


def test_a_picture_of_the_right_size_keeps_every_pixel(tmp_path):
    """Nothing is resampled where nothing has to be."""
    pixels = torch.randint(0, 256, (6, 5, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "a.png")
    assert torch.equal((read_references(tmp_path, (6, 5)).images[0] * 255).round().permute(1, 2, 0).byte(), pixels)


def test_masks_grow_with_their_pictures(tmp_path):
    """A mask is in pixels of the file; on cutting the centre out and resizing it keeps its place in the picture."""
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "sub" / "b.png", (40, 30))
    lines = [
        {"file_name": "a.png", "text": "red, masked", "mask": [1, 2, 5, 8]},
        {"file_name": "sub/b.png", "text": "same size", "mask": [3, 4, 5, 6]},
        {"file_name": "gone.png", "text": "of no picture"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = read_references(tmp_path, (30, 40))
    assert found.masks == ((0, 6, 5, 24), (3, 4, 5, 6))
    assert found.captions == ("red, masked", "same size")


def test_captions_beside_their_pictures(tmp_path):
    """A .txt of the same stem is the caption; `metadata.jsonl` goes before it; bad bytes are no caption."""
    for name in ("a", "b", "c", "d"):
        save_picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("  from the side\n")
    (tmp_path / "b.txt").write_text("not this")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "from metadata"}\n')
    assert read_references(tmp_path, (10, 20)).captions == ("from the side", "from metadata", None, None)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty"])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, damage):
    """One bad file is named in one line: it is neither skipped nor blackened."""
    save_picture(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(bad)
    whole = bad.read_bytes()
    bad.write_bytes({"garbage": b"garbage", "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(UserError, match=r"bad\.png: (picture cannot be read|empty file): repair or remove it"):
        read_references(tmp_path, (10, 20))


def test_a_folder_without_pictures_is_named(tmp_path):
    """An empty folder, a missing one and a file of another kind are one line each; one picture is a set of its own."""
    (tmp_path / "p.txt").write_text("a prompt")
    for name, says in (("", "no pictures in it"), ("none", "no such file or folder"), ("p.txt", "no pictures in it")):
        with pytest.raises(UserError, match=says):
            read_references(tmp_path / name, (10, 20))
    assert len(read_references(save_picture(tmp_path / "a.png"), (10, 20)).names) == 1


def test_broken_metadata_is_named(tmp_path):
    """A metadata line that is no JSON is named by file and line."""
    save_picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{\n')
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 2: not a JSON object"):
        read_references(tmp_path, (10, 20))


def test_a_picture_that_is_not_finite_is_not_written(tmp_path):
    """It would be a black one, which is a copy of nothing."""
    with pytest.raises(UserError, match="not finite"):
        save_image(torch.full((3, 4, 4), torch.nan), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_pictures_take_a_byte_a_value(tmp_path):
    """Ten thousand pictures of 512 px are 8 GB, not 31: the same numbers, nothing beside them."""
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    found = read_references(tmp_path, (20, 24))
    assert found.pixels.dtype == torch.uint8
    assert found.pixels.untyped_storage().nbytes() == 3 * 3 * 20 * 24
    assert torch.equal(found.images[1], load_image(tmp_path / "1.png"))


def test_pictures_are_never_there_twice(tmp_path):
    """Reading takes little beside the bytes that are kept."""
    for i in range(40):
        save_picture(tmp_path / f"{i}.jpg", (128, 128))
    tracemalloc.start()
    found = read_references(tmp_path, (128, 128))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * found.pixels.untyped_storage().nbytes()


def test_stored_prompts_are_read_by_row_groups(tmp_path, monkeypatch):
    """By place, slice and from the end, across groups; each group once, where they are asked for in order."""
    table = pa.table(
        {"id": [f"{i}" for i in range(10)], "prompt": [f"an owl {i}" for i in range(10)], "copies": [3] * 10}
    )
    pq.write_table(table, tmp_path / "prompts.parquet", row_group_size=4)
    read = []
    monkeypatch.setattr(source, "pq", SimpleNamespace(read_metadata=pq.read_metadata, ParquetFile=_noting(read)))
    stored = Stored(tmp_path / "prompts.parquet")
    assert len(stored) == 10
    assert [p.text for k in range(5) for p in stored[2 * k : 2 * k + 2]] == table["prompt"].to_pylist()
    assert read == [0, 1, 2]
    assert stored[-1] == Prompt("9", "an owl 9", copies=3)
    assert [p.id for p in stored[3:9]] == ["3", "4", "5", "6", "7", "8"]
    with pytest.raises(IndexError):
        stored[10]


def _noting(read):
    class Noting(pq.ParquetFile):
        def read_row_group(self, group):
            read.append(group)
            return super().read_row_group(group)

    return Noting
