"""The data audit from source to page: findings, resumption, hostile captions, mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser

import pyarrow.parquet as pq
import pytest

from data_pictures import draw, folder_of, png
from hostile import complaints
from unmemorize.core.errors import UserError
from unmemorize.core.specs import DataSpec
from unmemorize.data.database import database, rows
from unmemorize.report.rebuild import rebuild_report
from unmemorize.stages.data import audit_data
from unmemorize.testbed.dose import dose_curve

SCRIPT = "<script>alert(1)</script>"
HOSTILE = [
    f"{SCRIPT} gadget one",
    '</td></table><img src=x onerror=alert(2)> " onmouseover="alert(3) gadget two',
    "منارة قديمة gadget מגדלור",
    "\u202ereversed gadget by an override",
    "{{ 7 * 7 }} gadget $\\frac{",
    "'); DROP TABLE items; -- gadget",
]


@pytest.fixture
def source(tmp_path):
    """Six captions of one picture that share a word, twice each; a repeated word; ordinary rows; two bad ones."""
    rows = [(f"g{i}-{k}", draw(1, noise=i), caption) for i, caption in enumerate(HOSTILE) for k in range(2)]
    rows += [(f"o{i}", draw(100 + i), f"picture number{i} of thing{i % 7}") for i in range(30)]
    rows += [("repeat", draw(50), "thirty thirty thirty thirty"), ("bad", b"no picture", "x"), ("alone", draw(2), None)]
    rows.append((f"{SCRIPT[:20].replace('/', '')}&amp;", draw(60), "a hostile name"))
    return folder_of(tmp_path / "source", rows)


def run(source, folder, **options):
    return audit_data(DataSpec(source=str(source), **options), folder)


def test_findings_of_a_folder(source, tmp_path):
    """The shared and the repeated word, the group, what was skipped, what to drop; the promised keys."""
    summary = run(source, tmp_path / "run", out=str(tmp_path / "kept.parquet"))
    found = {(t["word"], t["kind"]) for t in summary["triggers"]}
    assert found == {("gadget", "across"), ("thirty", "within")}  # "7 * 7" is chance among so many words
    promised = {"word", "kind", "captions", "image_groups", "concentration", "lift", "p_value"}
    assert set(summary["triggers"][0]) == promised
    assert (summary["rows"], summary["skipped"], summary["duplicate_groups"]) == (45, 1, 1)
    assert (summary["uncaptioned"], summary["skipped_by_reason"]) == (1, {"picture cannot be read": 1})
    assert (summary["drop"], summary["recaption"]) == (11, 2)
    kept = pq.read_table(tmp_path / "kept.parquet")
    assert len(kept) == 44 - 11
    assert sum(reason is not None for reason in kept["recaption"].to_pylist()) == 2
    trigger, *_ = pq.read_table(tmp_path / "run" / "triggers.parquet").to_pylist()
    assert trigger["rows"] == 12
    dropped = pq.read_table(tmp_path / "run" / "actions.parquet").to_pylist()
    copies = {f"g{i}-{k}.png" for i in range(6) for k in range(2)}
    assert {a["id"] for a in dropped if a["action"] == "drop"} == copies - {"g0-0.png"}
    assert not (tmp_path / "run" / "work").exists()


def test_several_captions_have_no_prediction(source, tmp_path):
    """A word of six captions of one picture, and their group, were not measured; a word of one caption was."""
    run(source, tmp_path / "run")
    risks = {t["word"]: t["risk"] for t in pq.read_table(tmp_path / "run" / "triggers.parquet").to_pylist()}
    (group,) = pq.read_table(tmp_path / "run" / "groups.parquet").to_pylist()
    assert risks["gadget"] is None
    assert risks["thirty"] == dose_curve()[0].rate
    assert (group["risk"], group["risk_low"], group["risk_high"]) == (None, None, None)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert page.count("–<small>no prediction: several captions</small>") == 2


def test_one_caption_has_a_prediction(tmp_path):
    """A picture that is there thirty times under one caption."""
    source = folder_of(tmp_path / "source", [(f"k{i}", draw(1), "a kite") for i in range(30)])
    run(source, tmp_path / "run")
    (group,) = pq.read_table(tmp_path / "run" / "groups.parquet").to_pylist()
    assert 0 <= group["risk_low"] < group["risk"] < group["risk_high"] <= 1


def test_a_killed_audit_continues_to_the_same_bytes(source, tmp_path, monkeypatch):
    """Stopped while it reads and again while it analyses: every table and the page are the same."""
    import unmemorize.stages.data as job

    monkeypatch.setattr("unmemorize.data.folders.BATCH", 7)
    run(source, tmp_path / "whole")
    stop = {"n": 3}

    def stopping(stage, done, total):
        stop["n"] -= 1
        if stop["n"] == 0:
            raise KeyboardInterrupt

    for n in (3, 9):
        stop["n"] = n
        with pytest.raises(KeyboardInterrupt):
            job.audit_data(DataSpec(source=str(source)), tmp_path / "killed", stopping)
    run(source, tmp_path / "killed")
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "killed") for p in (tmp_path / "killed").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes(), file


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_hostile_captions_are_shown_and_never_become_markup(source, tmp_path):
    """No script, no handler, nothing loaded; captions, words and file names appear as they were written."""
    run(source, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    parsed = Page(page)
    assert SCRIPT not in page
    assert "script" not in [tag for tag, _ in parsed.elements]
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "srcset", "action"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), f"<{tag} {name}={target[:60]}>"
    for caption in HOSTILE[:3]:
        assert caption[:50] in parsed.text
    assert "gadget" in parsed.text
    assert "default-src 'none'" in page
    assert page.count("data:image/png") >= 7


def test_a_browser_opens_the_page_without_a_complaint(source, tmp_path):
    """Headless, with nothing on its console."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    run(source, tmp_path / "run")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'c'}"]
    flags += ["--enable-logging=stderr", "--v=0", "--dump-dom", (tmp_path / "run" / "report.html").as_uri()]
    done = subprocess.run([chromium, *flags], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert "Words shared across captions" in done.stdout


def test_the_page_is_rebuilt_from_the_run_alone(source, tmp_path):
    """After the source is gone, to the same bytes."""
    run(source, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_bytes()
    shutil.rmtree(source)
    (tmp_path / "run" / "report.html").unlink()
    # The record says finished by now, so the notice of an unfinished run is not there either way.
    assert rebuild_report(tmp_path / "run").read_bytes() == page


def test_pictures_without_captions_are_compared(call, tmp_path):
    """Duplicates need no words: three of one picture; the one with a caption is kept, and no caption is said twice."""
    pictures = [("a", draw(1), None), ("b", draw(1), None), ("c", draw(1), "a boat"), ("d", draw(2), None)]
    source = folder_of(tmp_path / "source", pictures)
    summary = run(source, tmp_path / "run")
    assert (summary["rows"], summary["duplicate_groups"], summary["drop"]) == (4, 1, 2)
    assert (summary["uncaptioned"], summary["skipped"], summary["triggers"]) == (3, 0, [])
    reasons = {row["id"]: row["reason"] for row in pq.read_table(tmp_path / "run" / "actions.parquet").to_pylist()}
    assert reasons == dict.fromkeys(("a.png", "b.png"), "same picture as c.png")
    assert pq.read_table(tmp_path / "run" / "keep.parquet")["id"].to_pylist() == ["c.png"]
    assert json.loads((tmp_path / "run" / "samples.json").read_text())["captions"] == []
    (source / "c.txt").unlink()
    code, out, _ = call("data", source, "--run", tmp_path / "none")
    assert code == 0
    assert "1 groups of duplicate pictures" in out
    assert "next: " not in out  # there is no prompt to audit


def test_a_source_without_a_usable_row(tmp_path):
    """Everything is skipped: reported as that, not as clean."""
    source = folder_of(tmp_path / "source", [("bad", b"no picture", "x")])
    summary = run(source, tmp_path / "run")
    assert (summary["rows"], summary["skipped"], summary["triggers"]) == (0, 1, [])
    assert "nothing was audited" in (tmp_path / "run" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("options", "folder", "says"),
    [
        ({"out": "kept.csv"}, "run", "not a .parquet file"),
        ({"out": "none/kept.parquet"}, "run", "no folder"),
        ({"out": "source/kept.parquet"}, "run", "which is read"),
        ({}, "source/run", "which is read"),
        ({}, "full", "holds something else"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(options, folder, says, source, tmp_path, monkeypatch):
    """One line, and no run directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=says):
        run(source, tmp_path / folder, **options)
    assert sorted(tmp_path.rglob("*")) == before


def test_another_source_is_refused_in_a_run(source, tmp_path):
    """A run directory belongs to what it was started with."""
    run(source, tmp_path / "run")
    (source / "new.txt").write_text("x")
    with pytest.raises(UserError, match="content of source"):
        run(source, tmp_path / "run")


def test_the_command_prints_json_alone(call, source, tmp_path):
    """Standard output is one object with the promised keys."""
    code, out, _ = call("data", source, "--run", tmp_path / "run", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"triggers", "duplicate_groups", "rows", "skipped"} <= set(found)


def test_the_command_prints_findings(call, source, tmp_path):
    """A table for people, with markup in words shown as it is."""
    code, out, _ = call("data", source, "--run", tmp_path / "run")
    assert code == 0
    assert "gadget" in out
    assert "captions: none for 1 pictures, of which only the pixels are compared" in out
    assert "skipped: 1 × picture cannot be read" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("missing",), "no such file or folder"), (("empty",), "nothing to read"), (("source", "--column", "x"), None)],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, source, tmp_path, monkeypatch, arguments, says):
    """What, where and what to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, out, err = call("data", *arguments, "--run", "run")
    if says is None:
        assert code == 0  # captions beside pictures have no column
        return
    assert (code, out) == (2, "")
    assert err.strip().startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert says in err
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_named(call, source, tmp_path, monkeypatch):
    """Without the extra the command says what to install, before it writes anything."""
    monkeypatch.setattr("unmemorize.data.database.find_spec", lambda name: None)
    code, _, err = call("data", source, "--run", tmp_path / "run")
    assert code == 2
    assert "unmemorize[data]" in err
    assert not (tmp_path / "run").exists()


def test_pictures_with_the_same_name_as_nothing_else(tmp_path):
    """A picture alone is no group and no trigger."""
    source = folder_of(tmp_path / "source", [("a", png(draw(1)), "a kite")])
    assert run(source, tmp_path / "run")["duplicate_groups"] == 0


@pytest.mark.parametrize("memory", ["199MB", "0.2GB", "4", "4 bytes", "0GB", "GB", ""])
def test_a_limit_of_memory_that_is_none_is_one_line(memory, call, source, tmp_path):
    """What cannot be read as a size, and what is too small for DuckDB itself."""
    code, out, err = call("data", source, "--run", tmp_path / "run", "--memory", memory)
    assert (code, out) == (2, "")
    assert complaints(err) == [f"error: --memory {memory}: write a size of at least 200MB, such as 4GB"]
    assert not (tmp_path / "run").exists()


def test_a_limit_of_memory_is_kept_and_changes_nothing(source, tmp_path, monkeypatch):
    """DuckDB is told it; what was found is the same as with the default."""
    limits = []

    def database_of(folder, memory="1GB"):
        limits.append(memory)
        return database(folder, memory)

    monkeypatch.setattr("unmemorize.stages.data.database", database_of)
    summary = run(source, tmp_path / "small", memory=" 200 mb")
    assert limits == [" 200 mb"]
    assert summary == run(source, tmp_path / "usual")


def test_work_beyond_the_memory_is_written_to_the_folder(tmp_path):
    """A sort of ten times as much goes through it, and leaves nothing; what must be held at once is one line."""
    with database(tmp_path, "200MB") as connection:
        assert rows(connection, "SELECT current_setting('memory_limit') AS held")[0]["held"] == "190.7 MiB"
        (row,) = rows(
            connection,
            """SELECT sum(n) AS n FROM (SELECT n FROM (SELECT i AS n, repeat('x', 200) || i AS s
            FROM range(1000000) t(i)) ORDER BY hash(s), s LIMIT 900000)""",
        )
        assert row["n"] > 0
    with (
        pytest.raises(UserError, match="the analysis needs more than 200MB of memory: allow it more with --memory"),
        database(tmp_path, "200MB") as connection,
    ):
        rows(connection, "SELECT len(list(repeat('x', 100) || i)) AS n FROM range(5000000) t(i)")
    assert list(tmp_path.iterdir()) == []
