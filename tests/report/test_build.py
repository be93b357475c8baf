"""The report holds what the run holds, runs nothing of it, loads nothing, and is the same every time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unmemorize.core.errors import UserError
from unmemorize.report.build import build_report, duration, number, percent, plain

SCRIPT = "<script>alert(1)</script>"
NO_TORCH = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "transformers", "accelerate"):
            raise ImportError(name + " is forbidden here")

sys.meta_path.insert(0, Forbid())
from pathlib import Path
from unmemorize.report.build import build_report
print(build_report(Path(sys.argv[1])))
"""
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements, ids and text of a page; `closed` says whether every element was closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open, self.closed = "", [], True
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.closed &= self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def page_of(run: Path) -> str:
    return build_report(run).read_text("utf-8")


def edit(path: Path, **changes: object) -> None:
    """Change top-level keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def table(run: Path, name: str) -> Path:
    return run / "scores" / f"{name}.parquet"


def rewrite(path: Path, change: Callable[[dict], dict]) -> None:
    pq.write_table(pa.Table.from_pylist([change(row) for row in pq.read_table(path).to_pylist()]), path)


def test_hostile_text_is_shown_and_never_becomes_markup(run, hostile):
    edit(run / "run.json", model={"name": SCRIPT, "fingerprint": f'"{SCRIPT}'})
    edit(run / "summary.json", sentence=f"Bad {SCRIPT} & worse")
    page = page_of(run)
    parsed = Page(page)
    assert SCRIPT not in page
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert parsed.closed
    assert not parsed.open
    for text in [*hostile, f"Bad {SCRIPT} & worse"]:
        assert text in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text


def test_hostile_kinds_reach_neither_the_svg_nor_its_text_parser(run):
    kind = f"$\\frac{{{SCRIPT} 🦉\u202e"
    rewrite(table(run, "prompts"), lambda row: row | {"kind": kind})
    page = page_of(run)
    assert SCRIPT not in page
    assert "planted: $\\frac{&lt;script&gt;" in page


def test_the_page_is_self_contained(full_run):
    page = page_of(full_run)
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), f"<{tag} {name}={target[:60]}>"
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    assert len(page) < 5_000_000


def test_ids_are_unique_and_links_lead_somewhere(full_run):
    elements = Page(page_of(full_run)).elements
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    links = [found.get("href") or found.get("xlink:href") for tag, found in elements if tag in ("a", "use")]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link} <= set(ids)


def test_the_same_run_gives_the_same_bytes(run):
    first = build_report(run).read_bytes()
    subprocess.run([sys.executable, "-c", NO_TORCH, str(run)], check=True, timeout=120)
    assert (run / "report.html").read_bytes() == first
    assert not list(run.glob(".*tmp"))


def test_prompts_are_ranked_by_mean_score_with_unscored_ones_last(run):
    keep = pq.read_table(table(run, "detect")).to_pylist()
    pq.write_table(pa.Table.from_pylist([row for row in keep if row["id"] != "p0001"]), table(run, "detect"))
    means = {}
    for row in keep:
        means.setdefault(row["id"], []).append(row["score"])
    best = max(means, key=lambda key: sum(means[key]))
    shown = re.findall(r'class="id"><bdi>(\w+)</bdi>', page_of(run))
    assert (shown[0], shown[-1], len(shown)) == (best, "p0001", 40)


def test_every_copy_is_shown_with_its_pictures_however_low_it_ranks(full_run):
    parsed = Page(page_of(full_run))
    rows = [attributes for tag, attributes in parsed.elements if tag == "tr" and "data-verdict" in attributes]
    copies = json.loads((full_run / "summary.json").read_text())["copied_prompts"]
    assert len(rows) == 150
    assert sum(row["data-verdict"] in ("verbatim", "template") for row in rows[:-40]) == copies
    assert "not generated" in parsed.text


def test_what_is_null_is_not_applicable_and_says_why(run):
    reason = "the prompts carry no labels"
    states = [{"name": "detector", "state": "not applicable", "reason": reason}]
    edit(run / "summary.json", detector=None, text_control=None, roc=None, dose=None, states=states)
    rewrite(table(run, "prompts"), lambda row: row | {"kind": None, "copies": None, "memorable": None})
    text = Page(page_of(run)).text
    assert text.count("Not applicable.") == 3
    assert reason in text
    assert "How often each picture was in the training set is not known." in text
    assert "all prompts" in text
    assert "assed" not in text


@pytest.mark.parametrize("verdict", ["passed", "untested"])
def test_a_verdict_is_no_more_than_it_says(run, verdict):
    edit(run / "summary.json", verdict=verdict, sentence="As it is.", copied_prompts=0, copied_images=0)
    text = Page(page_of(run)).text
    says = {"passed": "does not show that the model has memorized nothing", "untested": "Untested is not a pass"}
    assert says[verdict] in text


def test_a_run_without_pictures_or_scores_is_reported(run):
    table(run, "detect").unlink()
    table(run, "verify").unlink()
    (run / "timing.json").unlink()
    none = dict.fromkeys(("generated_prompts", "images", "copied_prompts", "copied_images"), 0)
    edit(run / "summary.json", verdict="untested", detector=None, text_control=None, roc=None, **none)
    text = Page(page_of(run)).text
    assert "none was compared" in text
    assert "not scored" in text
    assert "not recorded" in text
    assert "0%" not in text.split("How to read this")[0]


def test_pictures_that_were_compared_with_nothing_are_shown_and_called_that(run):
    verify = pq.read_table(table(run, "verify"))
    pq.write_table(verify.select(["id", "seed", "image"]), table(run, "images"))
    table(run, "verify").unlink()
    none = dict.fromkeys(("generated_prompts", "images", "copied_prompts", "copied_images"), 0)
    edit(run / "summary.json", verdict="untested", **none)
    page = page_of(run)
    assert page.count("data:image/png") == len(verify)
    assert page.count('quiet">not compared') == len(verify)
    assert "no copy" not in Page(page).text.split("Prompts, most memorized first")[1].replace("generated, no copy", "")


def test_an_unfinished_run_says_so(run):
    edit(run / "run.json", status="running")
    assert "This run is not finished" in page_of(run)


def test_pictures_outside_the_run_or_broken_are_left_out(run):
    Image.new("RGB", (8, 8), "red").save(run.parent / "secret.png")
    (run / "images" / "broken.png").write_bytes(b"not a picture")
    paths = ["../secret.png", str(run.parent / "secret.png"), "images/broken.png", "images/\0none.png"]
    rewrite(table(run, "verify"), lambda row: row | {"image": paths[row["seed"]], "nearest": paths[2 + row["seed"]]})
    page = page_of(run)
    assert "data:image/png" not in page
    assert "not in the run directory" in page


def test_large_pictures_are_shrunk(make, tmp_path):
    page = page_of(make(tmp_path / "run", prompts=10, size=320))
    assert "data:image/webp" in page
    assert "data:image/png" not in page
    assert len(page) < 1_000_000


def test_only_the_first_of_very_many_prompts_are_listed(run, monkeypatch):
    monkeypatch.setattr("unmemorize.report.build.WITH_PICTURES", 5)
    monkeypatch.setattr("unmemorize.report.build.COMPACT", 7)
    assert re.search(r"\d+ further prompts are not listed here", page_of(run))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: shutil.rmtree(run), "no such run directory"),
        (lambda run: (run / "run.json").unlink(), r"run\.json: cannot be read"),
        (lambda run: (run / "run.json").write_text('{"schema": 1'), r"run\.json: the file: Invalid JSON"),
        (lambda run: edit(run / "run.json", schema=2), r"run\.json: schema: Input should be 1"),
        (lambda run: edit(run / "summary.json", detector={"method": "x"}), r"summary\.json: detector\.label"),
        (lambda run: table(run, "prompts").write_bytes(b"PAR1"), r"prompts\.parquet: cannot be read"),
        (lambda run: table(run, "detect").unlink(), r"detect\.parquet: cannot be read"),
        (lambda run: rewrite(table(run, "verify"), lambda row: {"id": row["id"]}), r"verify\.parquet: cannot be read"),
        (lambda run: rewrite(table(run, "prompts"), lambda row: row | {"id": None}), r"prompts\.parquet: cannot be"),
    ],
)
def test_a_missing_or_damaged_run_is_named_in_one_line(run, damage, says):
    damage(run)
    with pytest.raises(UserError, match=says) as caught:
        build_report(run)
    assert "\n" not in str(caught.value)
    assert str(run) in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_report_is_rebuilt_without_torch(run):
    done = subprocess.run([sys.executable, "-c", NO_TORCH, str(run)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "report.html")


def test_a_browser_opens_it_without_a_complaint_and_its_script_runs(full_run, tmp_path, chromium):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path}"]
    flags += ["--enable-logging=stderr", "--v=0", "--dump-dom"]
    command = [chromium, *flags, build_report(full_run).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    elements = Page(done.stdout).elements
    assert [attributes for tag, attributes in elements if tag == "form" and "hidden" not in attributes]
    assert [tag for tag, _ in elements].count("button") == 8


def test_numbers_read_as_a_person_writes_them():
    assert [number(v) for v in (None, float("nan"), 0.0, 1234, 0.0312, 2.5, 0.00012)] == [
        "–", "–", "0.000", "1,234", "0.031", "2.500", "0.00012",
    ]  # fmt: skip
    assert [percent(1, 8), percent(0.5), percent(0, 0)] == ["12%", "50%", "–"]
    assert [duration(s) for s in (3.21, 600, 9000)] == ["3.2 s", "10 min", "2 h 30 min"]
    assert [plain(v) for v in ([1, 2], "a", None, True, 7.5)] == ["1, 2", "a", "none", "true", "7.5"]
