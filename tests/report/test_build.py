"""The report holds what the run holds, runs nothing of it, loads nothing, and is the same every time."""

from __future__ import annotations

import base64
import csv
import hashlib
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
    scripts = [attributes.get("type") for tag, attributes in parsed.elements if tag == "script"]
    assert scripts == ["application/json", None]  # the rows without pictures, and the page's own
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
    assert {link[1:] for link in links if link and not link.startswith("data:text/csv")} <= set(ids)


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
    assert sum(row["data-verdict"] in ("verbatim", "template") for row in rows) == copies
    assert len(rows) + len(rows_without_pictures(full_run)) == 150


def rows_without_pictures(run):
    return json.loads(re.search(r'id="rows">(.*?)</script>', page_of(run), re.DOTALL)[1])


def test_rows_without_pictures_cannot_leave_their_element(run, monkeypatch):
    monkeypatch.setattr("unmemorize.report.build.WITH_PICTURES", 0)
    monkeypatch.setattr("unmemorize.report.build.MOST_PICTURES", 0)
    hostile = "</script><script>alert(1)</script><!--<script>\u2028&amp;"
    rewrite(table(run, "prompts"), lambda row: row | {"prompt": hostile})
    page = page_of(run)
    assert page.count("<script") == page.count("</script>") == 2
    assert [row[2] for row in rows_without_pictures(run)] == [hostile] * 40


def test_rows_without_pictures_are_json_and_no_page_holds_nul(run, monkeypatch):
    """A distance that is no number is null, and NUL in a prompt is shown as what cannot be shown."""
    monkeypatch.setattr("unmemorize.report.build.WITH_PICTURES", 0)
    monkeypatch.setattr("unmemorize.report.build.MOST_PICTURES", 0)
    edit(run / "run.json", model={"name": "a\0b", "fingerprint": "0"})
    rewrite(table(run, "verify"), lambda row: row | {"distance": float("nan"), "ratio": float("nan")})
    page = page_of(run)
    assert "\0" not in page
    assert "a\ufffdb" in page
    (block,) = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)

    def strict(name):
        raise ValueError(name)

    assert all(shot[1] is None for row in json.loads(block, parse_constant=strict) for shot in row[-1])


def test_no_finding_or_record_is_markup_in_the_model_card(run):
    """Codes, fingerprints and recipes are text, as titles are."""
    summary = json.loads((run / "summary.json").read_text())
    finding = summary["findings"][0] | {"code": f"UM<b>{SCRIPT}", "evidence": f"[a](https://x.example)\r\n{SCRIPT}\0"}
    edit(run / "summary.json", findings=[finding])
    edit(run / "run.json", model={"name": "m", "fingerprint": f"`{SCRIPT}"})
    build_report(run)
    text = (run / "model-card.md").read_text("utf-8").split("---\n")[2]
    assert not re.search(r"(?<!\\)[<>`]|\]\(|https?:|\0|\r", text)
    assert "UM\\<b\\>" in text


@pytest.mark.parametrize(("evidence", "kinds"), [("full", {"png"}), ("thumb", {"webp", "png"}), ("none", {"png"})])
def test_evidence_decides_what_is_shown_of_training_pictures(make, tmp_path, evidence, kinds):
    run = make(tmp_path / "run", prompts=20, size=112)
    page = build_report(run, evidence=evidence).read_text("utf-8")
    assert set(re.findall("data:image/([a-z]+)", page)) == kinds
    found = [
        a for tag, a in Page(page).elements if (tag == "img" and "training" in a["alt"]) or "copy" in a.get("alt", "")
    ]
    assert bool(found) == (evidence != "none")
    assert ("withheld" in page) == (evidence == "none")
    if evidence == "none":
        used = pq.read_table(table(run, "verify")).to_pylist()[0]["nearest"]
        assert hashlib.sha256((run / used).read_bytes()).hexdigest()[:12] in page


def test_words_are_coloured_by_their_share_and_the_prompt_stays_whole(run):
    rewrite(table(run, "prompts"), lambda row: row | {"prompt": f"one  two\u00a0<b>three {row['id']}"})
    spans = {"starts": [0, 5, 9], "stops": [3, 8, 17], "significance": [1.0, 4.0, 2.0]}
    rewrite(table(run, "explain"), lambda row: {"id": row["id"]} | spans)
    page = page_of(run)
    assert re.search(r'--share:0\.25">one</mark>  <mark style="--share:1\.00">two</mark>', page)
    assert 'share:0.50">&lt;b&gt;three</mark>' in page


def test_words_that_all_speak_against_a_copy_have_no_colour(run):
    """As a method that says for and against may find: the least of them is not the strongest."""
    rewrite(table(run, "prompts"), lambda row: row | {"prompt": f"one two {row['id']}"})
    spans = {"starts": [0, 4], "stops": [3, 7], "significance": [-1.0, -4.0]}
    rewrite(table(run, "explain"), lambda row: {"id": row["id"]} | spans)
    shares = [float(share) for share in re.findall(r'--share:(-?[0-9.]+)">(?:one|two)</mark>', page_of(run))]
    assert shares
    assert max(shares) <= 0


def test_what_falls_on_no_word_and_the_copies_without_one_are_shown(run):
    """Shares of the gradient add up to all of it; the counterfactual names the word, as text."""
    rewrite(table(run, "prompts"), lambda row: row | {"prompt": f"one two <b>three {row['id']}"})
    words = {"starts": [0, 4, 8], "stops": [3, 7, 16], "significance": [1.0, 2.0, 1.0]}
    special = {"begin": 2.0, "end": 1.0, "padding": 9.0}
    counts = {"omitted": 2, "pictures": 4, "copies_with": 3, "copies_without": 0}
    rewrite(table(run, "explain"), lambda row: {"id": row["id"]} | words | special | counts)
    text = Page(page_of(run)).text
    assert "words 25% · begin token 12% · end token 6% · padding tokens 56%" in text
    assert "generated without “<b>three”" in text
    assert "0 of 4 pictures copy the same training picture; with the whole prompt 3 of 4" in text


def test_numbers_of_every_figure_are_there_as_csv(run):
    rewrite(table(run, "attack_curve"), lambda row: row | {"mitigation": '=HYPERLINK("x")'})
    links = {a["download"]: a["href"] for tag, a in Page(page_of(run)).elements if tag == "a" and "download" in a}
    assert set(links) == {f"{name}.csv" for name in ("dose", "roc", "scores", "attack")}
    files = {name: base64.b64decode(href.split(",")[1]).decode() for name, href in links.items()}
    dose = list(csv.DictReader(files["dose.csv"].splitlines()))
    assert [int(row["copies"]) for row in dose] == [1, 2, 4, 8, 16, 32, 64]
    assert len(files["scores.csv"].splitlines()) == 41
    assert "\"'=HYPERLINK" in files["attack.csv"]  # a spreadsheet shows it and does not run it


def test_mitigations_that_were_not_attacked_say_so(run):
    text = Page(page_of(run)).text
    assert "pruning <b>" in text
    assert "A mitigation that was not attacked by an attack that knows it is untested." in text
    assert "Not attacked by an attack that knows it, and so untested: guidance." in text
    assert "Of those attacked, the most effective (pruning <b>)" in text
    for name in ("mitigations", "attack_curve"):
        table(run, name).unlink()
    text = Page(page_of(run)).text
    assert "No mitigation was tried in this run, so none can be called effective." in text
    assert "No mitigation was tried in this run." in text


@pytest.mark.parametrize("old", [False, True])
def test_an_attack_that_never_met_a_mitigation_is_never_the_best(run, old):
    """The guard's figure stands in brackets and in no card, also in a run that does not record who knew of it."""
    known, unknown = (None, None) if old else (True, False)
    tell = {"none": known, "pruning <b>": known, "guidance": unknown}
    rewrite(table(run, "mitigations"), lambda row: row | {"attack_knows_it": tell[row["name"]]})
    guard = {"name": "guard", "copy_rate_attacked": 0.01}
    rewrite(table(run, "mitigations"), lambda row: row | (guard if row["name"] == "guidance" else {}))
    text = Page(page_of(run)).text
    assert "not attacked by one that knows it (1% by one that does not)" in text
    assert "the most effective (pruning <b>)" in text
    card = json.loads((run / "model-card.md").read_text().split("---")[1])
    metrics = {metric["type"]: metric["value"] for metric in card["model-index"][0]["results"][0]["metrics"]}
    assert metrics["copies_after_attack"] == pytest.approx(0.7)


def test_every_state_has_a_badge_and_the_page_says_the_bound(run):
    """Five states by word and sign, and how many units decide; a run without a bound says that it is older."""
    states = ("issue", "passed", "inconclusive", "not applicable", "not run")
    findings = json.loads((run / "summary.json").read_text())["findings"]
    edit(run / "summary.json", findings=[findings[0] | {"state": state} for state in states], bound=0.1, needed=36)
    edit(run / "run.json", spec={"model": "m", "plan": "quick"})
    page = page_of(run)
    for state, sign in zip(states, "!✓?–○", strict=True):
        assert f'state-{state.replace(" ", "-")}"><span aria-hidden="true">{sign}</span> {state}<' in page
    text = Page(page).text
    assert "at most 10%, which takes 36 prompts or pictures without a hit" in text
    assert "The quick plan never attacks as many by itself" in text
    assert "Judged by an earlier version" not in text
    edit(run / "summary.json", bound=None, needed=None)
    assert "Judged by an earlier version" in Page(page_of(run)).text


def test_the_model_card_is_metadata_the_hub_reads_and_markdown_that_says_no_more(run):
    from huggingface_hub import ModelCard

    edit(run / "run.json", model={"name": f"a: b\n---\n{SCRIPT} #1", "fingerprint": "0f" * 32})
    build_report(run)
    card = ModelCard.load(run / "model-card.md", ignore_metadata_errors=False)
    assert card.data.model_name == f"a: b\n---\n{SCRIPT} #1"
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    summary = json.loads((run / "summary.json").read_text())
    assert found["copied_prompts"] == summary["copied_prompts"]
    assert found["copies_after_attack"] == pytest.approx(0.7)
    assert SCRIPT not in card.text
    assert "| UM005 |" in card.text


def test_what_is_null_is_not_applicable_and_says_why(run):
    reason = "the prompts carry no labels"
    states = [{"name": "detector", "state": "not applicable", "reason": reason}]
    edit(run / "summary.json", detector=None, text_control=None, roc=None, dose=None, states=states, findings=[])
    rewrite(table(run, "prompts"), lambda row: row | {"kind": None, "copies": None, "memorable": None})
    text = Page(page_of(run)).text
    assert text.count("Not applicable.") == 3
    assert reason in text
    assert "How often each picture was in the training set is not known." in text
    assert "all prompts" in text
    assert "assed" not in text


@pytest.mark.parametrize("verdict", ["passed", "too little", "untested"])
def test_a_verdict_is_no_more_than_it_says(run, verdict):
    edit(run / "summary.json", verdict=verdict, sentence="As it is.", copied_prompts=0, copied_images=0)
    text = Page(page_of(run)).text
    says = {"passed": "does not show that the model has memorized nothing", "untested": "Untested is not a pass"}
    says["too little"] = "Too little is not a pass"
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


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: shutil.rmtree(run), "no such run directory"),
        (lambda run: (run / "run.json").unlink(), r"run\.json: cannot be read"),
        (lambda run: (run / "run.json").write_text('{"schema_version": 1'), r"run\.json: the file: Invalid JSON"),
        (lambda run: edit(run / "run.json", schema_version=2), r"run\.json: schema_version: Input should be 1"),
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


def test_numbers_read_as_a_person_writes_them():
    assert [number(v) for v in (None, float("nan"), 0.0, 1234, 0.0312, 2.5, 0.00012)] == [
        "–", "–", "0.000", "1,234", "0.031", "2.500", "0.00012",
    ]  # fmt: skip
    assert [percent(1, 8), percent(0.5), percent(0, 0)] == ["12%", "50%", "–"]
    assert [duration(s) for s in (3.21, 600, 9000)] == ["3.2 s", "10 min", "2 h 30 min"]
    assert [plain(v) for v in ([1, 2], "a", None, True, 7.5)] == ["1, 2", "a", "none", "true", "7.5"]
