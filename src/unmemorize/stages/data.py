"""The data audit: any source to findings, the rows to drop or caption anew, and a page that shows them."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from unmemorize.core.crew import ALONE, WHOLE, Crew, Part
from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.outputs import Output, check_outputs
from unmemorize.core.pictures import Unusable, read_picture
from unmemorize.core.run import (
    Progress,
    Run,
    RunRecord,
    atomic,
    quiet,
    read_json,
    require_same_versions,
    versions,
    write_json,
)
from unmemorize.core.specs import DataSpec
from unmemorize.data.against import compare_with
from unmemorize.data.candidates import Search
from unmemorize.data.captions import pieces
from unmemorize.data.curation import KEEP, collect_actions, collect_stakes, group_rows
from unmemorize.data.database import caption_files, check_memory, counts, database, open_parquet, require, write_query
from unmemorize.data.duplicates import (
    RULE,
    SAME,
    Group,
    caption_groups,
    group_pictures,
    picture_groups,
    sampled_pictures,
)
from unmemorize.data.index import audited_pieces, index_source, nearest, require_audit
from unmemorize.data.intake import (
    SKIPPED,
    picture_files,
    read_pieces,
    require_read,
    rows_of,
    skipped_of,
    source_of,
)
from unmemorize.data.items import Piece
from unmemorize.data.recall import PICTURES, measure_recall
from unmemorize.data.repeats import caption_templates, repeated_words
from unmemorize.data.streamed import path_of
from unmemorize.data.words import Trigger, collect_captions, shared_words
from unmemorize.metrics.dose import predicted_risk
from unmemorize.report.data import build_data_report
from unmemorize.testbed.dose import dose_curve

SHOWN = 40  # groups, and triggers of a kind, that the page shows with pictures
RISKS = [(name, pa.float64()) for name in ("risk", "risk_low", "risk_high")]  # columns
SMALL = 128  # pixels of a picture on the page


def audit_data(spec: DataSpec, run: Path, progress: Progress = quiet, crew: Crew = ALONE) -> dict[str, Any]:
    """Run or continue a data audit in `run`; returns its summary and leaves `report.html` there.

    Raises:
        UserError: The source cannot be used, `run` holds another run or lies in the source, or the export would
            overwrite the source.
        Unfinished: Other parts are not done.
        MissingExtra: duckdb or ImageHash is not installed.
    """
    require()
    check_memory(spec.memory)
    _check_places(spec, run)
    used = {name: index_source(Path(where), f"--{name}") for name, where in _used(spec).items()}
    parts = _pieces(spec)
    record = RunRecord(
        status="running",
        spec={"source": spec.source, "column": spec.column, **_used(spec)},
        versions=versions() | {name: version(name) for name in ("duckdb", "imagehash")},
        model={},
        data={"source": source_of(Path(spec.source), spec.column)} | used,
        criterion=Criterion("near-duplicate", SAME, "phash-cosine-16px", higher_is_closer=True),
    )
    with Run.open(run, record) as opened:
        if opened.is_kept:
            return read_json(run / "data.json")
        progress("read", 0, len(parts))
        idle = crew.call(Intake(spec, run, crew.part))
        for done in read_pieces(parts, run, crew.part, idle):
            progress("read", done, len(parts))
        require_read(parts, run, crew.part)
        search = _searched(Search(run), crew, progress)
        against = _searched(Search(run, Path(spec.against)), crew, progress) if spec.against else None
        summary = analyse(spec, run, parts, search, against, progress)
        if spec.out:
            _export(run, Path(spec.out))
    build_data_report(run)
    return summary


def nearest_rows(run: Path, picture: Path, top: int) -> dict[str, Any]:
    """The rows of a finished audit that are most like a picture; how many were compared, and by which rule.

    Raises:
        UserError: There is no such audit, or the picture cannot be read.
        MissingExtra: duckdb or ImageHash is not installed.
    """
    require()
    require_audit(run, "nearest")
    summary = read_json(run / "data.json")
    try:
        image = read_picture(picture)
    except Unusable as error:
        raise UserError(f"{picture}: {error}: name a picture") from error
    matches = [dataclasses.asdict(match) for match in nearest(run, image, top)]
    return {"pictures": summary["pictures"], "rule": RULE, "matches": matches}


@dataclass(frozen=True)
class Intake:
    """Reading a source as settings alone, which another process takes shards of."""

    spec: DataSpec
    run: Path
    part: Part = WHOLE

    def share(self) -> None:
        """Read pieces until all of the part are read, by whichever process."""
        require_same_versions(self.run)
        for _ in read_pieces(_pieces(self.spec, pictures=False), self.run, self.part):
            pass


def _searched(search: Search, crew: Crew, progress: Progress) -> Search:
    """A search whose pairs are found, by whichever process."""
    idle = crew.call(search)
    for done, count in search.take(idle):
        progress("compare", done, count)
    return search


def _used(spec: DataSpec) -> dict[str, str]:
    """The other audits that one uses, by the option that names them."""
    named = {"add": spec.add, "against": spec.against}
    return {name: run for name, run in named.items() if run}


def _pieces(spec: DataSpec, pictures: bool = True) -> list[Piece]:
    """What is read: of the audit that is added to, whose pictures may be wanted, then of the source."""
    audited = audited_pieces(Path(spec.add), pictures) if spec.add else []
    return [*audited, *pieces(Path(spec.source), spec.column)]


def _check_places(spec: DataSpec, run: Path) -> None:
    outputs = [Output("--run", run, "run")]
    if spec.out:
        outputs.append(Output("--out", Path(spec.out), "file"))
        if Path(spec.out).suffix != ".parquet":
            raise UserError(f"{spec.out}: not a .parquet file: name one with --out")
    check_outputs(outputs, [path_of(spec.source), spec.add, spec.against])


def analyse(
    spec: DataSpec, run: Path, parts: Sequence[Piece], search: Search, against: Search | None, progress: Progress
) -> dict[str, Any]:
    """Find duplicates and triggers in the rows that were read, and write them down.

    Args:
        spec: The settings.
        run: The run directory.
        parts: What the rows were read from.
        search: The pairs of near hashes among them, which are found.
        against: Those with the rows of another audit, where one is named.
        progress: What is told how far it is.
    """
    skipped = _write_skipped(run)
    with database(run, spec.memory) as connection:
        open_parquet(connection, rows_of(run), "items")
        stages: tuple[tuple[str, Callable[[Any], Any]], ...] = (
            ("pictures", partial(group_pictures, pairs=search.pairs)),
            ("captions", collect_captions),
            ("words", shared_words),
            ("repeats", repeated_words),
            ("slots", caption_templates),
        )
        results: dict[str, Any] = {}
        for done, (name, stage) in enumerate(stages):
            progress("analyse", done, len(stages))
            results[name] = stage(connection)
        progress("analyse", len(stages), len(stages))
        triggers: list[Trigger] = [*results["words"], *results["repeats"], *results["slots"]]
        stakes = collect_stakes(connection, triggers)
        groups = list(picture_groups(connection))
        collect_actions(connection, triggers)
        samples = group_rows(connection, _shown_groups(groups, triggers))
        _write(run / "triggers.parquet", _trigger_table(triggers, stakes, groups))
        _write(run / "groups.parquet", _group_table(groups))
        write_query(connection, "SELECT row, id, action, reason FROM actions ORDER BY row", run / "actions.parquet")
        write_query(connection, KEEP, run / "keep.parquet")
        dropped, recaptioned = counts(
            connection, "SELECT count(*) FILTER (action = 'drop'), count(*) FILTER (action = 'recaption') FROM actions"
        )
        total, pictures, captioned = counts(connection, "SELECT count(*), count(pixels), count(text) FROM items")
        captions = caption_groups(connection, SHOWN)
        captions_from = caption_files(connection)
        sampled = sampled_pictures(connection, PICTURES)
        found = _against(connection, run, against)
    write_json(run / "samples.json", {"groups": {str(k): v for k, v in samples.items()}, "captions": captions})
    _thumbnails(run, parts, {row["row"] for rows in samples.values() for row in rows})
    summary = {
        "near_duplicates": _near_duplicates(parts, sampled, search),
        "against": found,
        "triggers": [_public(t) for t in triggers],
        "duplicate_groups": len(groups),
        "rows": total,
        "pictures": pictures,
        "captions_from": captions_from,
        "uncaptioned": total - captioned,
        "skipped": skipped.total(),
        "skipped_by_reason": dict(skipped.most_common()),
        "drop": dropped,
        "recaption": recaptioned,
    }
    write_json(run / "data.json", summary)
    return summary


def _against(connection: Any, run: Path, search: Search | None) -> dict[str, Any] | None:
    """Write `against.parquet`, where another audit is named; the rule, and how many rows are in the other."""
    if search is None or search.other is None:
        return None
    found = compare_with(connection, rows_of(search.other), search.pairs, run / "against.parquet")
    return {"run": str(search.other), "rule": RULE, "compared": search.how, "rows": found}


def _near_duplicates(parts: Sequence[Piece], sampled: set[int], search: Search) -> dict[str, Any]:
    """How near-duplicates were found, and what share of altered copies of a few of the pictures would be, too."""
    pictures = [image for _, image in _images(parts, sampled)]
    recall = measure_recall(pictures, search.meets)
    return {"rule": RULE, "compared": search.how, "copies_planted": len(pictures), "recall": recall}


def _images(parts: Sequence[Piece], rows: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """The pictures of a few rows, but for those that cannot be read a second time."""
    for row, content in picture_files(parts, rows):
        try:
            yield row, read_picture(content)
        except Unusable:
            continue


def _public(t: Trigger) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(t).items() if k != "group"}


def _write_skipped(run: Path) -> Counter[str]:
    """Write `skipped.parquet`; returns how many rows were skipped for each reason."""
    reasons: Counter[str] = Counter()
    with atomic(run / "skipped.parquet") as temporary, pq.ParquetWriter(temporary, SKIPPED) as writer:
        for path in skipped_of(run):
            table = pq.read_table(path)
            reasons.update(table["reason"].to_pylist())
            writer.write_table(table)
    return reasons


def _write(path: Path, table: pa.Table) -> None:
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def _risk(copies: int, captions: int) -> dict[str, float | None]:
    """The predicted copy rate of a picture under one caption; several captions were not measured."""
    if captions > 1:
        return {"risk": None, "risk_low": None, "risk_high": None}
    risk = predicted_risk(dose_curve(), copies)
    return {"risk": risk.value, "risk_low": risk.low, "risk_high": risk.high}


def _trigger_table(triggers: Sequence[Trigger], stakes: Sequence[dict[str, Any]], groups: Sequence[Group]) -> pa.Table:
    held = {stake["trigger"]: stake for stake in stakes}
    captions = {g.group: g.captions for g in groups}
    lines = []
    for i, t in enumerate(triggers):
        said_of_the_picture = max(t.captions, captions.get(t.group, 1))
        risk = _risk(held[i]["rows"], said_of_the_picture)
        lines.append(dataclasses.asdict(t) | {"rows": held[i]["rows"], "sample": held[i]["sample"]} | risk)
    text, count, number = pa.string(), pa.int64(), pa.float64()
    said = [("word", text), ("kind", text), ("captions", count), ("image_groups", count)]
    measured = [(name, number) for name in ("concentration", "lift", "p_value")]
    held_by = [("group", count), ("rows", count), ("sample", pa.list_(text))]
    return pa.Table.from_pylist(lines, pa.schema([*said, *measured, *held_by, *RISKS]))


def _group_table(groups: Sequence[Group]) -> pa.Table:
    pair = pa.struct([("first", pa.int64()), ("second", pa.int64()), ("cosine", pa.float64())])
    lines = []
    for g in groups:
        line = dataclasses.asdict(g) | {"tightest": _pair(g.tightest), "loosest": _pair(g.loosest)}
        lines.append(line | _risk(g.rows, g.captions))
    counted = [(name, pa.int64()) for name in ("group", "rows", "files", "pixels", "captions")]
    schema = pa.schema([*counted, ("tightest", pair), ("loosest", pair), *RISKS])
    return pa.Table.from_pylist(lines, schema)


def _pair(pair: tuple[int, int, float] | None) -> dict[str, Any] | None:
    return dict(zip(("first", "second", "cosine"), pair, strict=True)) if pair else None


def _shown_groups(groups: Sequence[Group], triggers: Sequence[Trigger]) -> list[int]:
    """Groups the page shows: the largest, and those of the first triggers of each kind."""
    shown = [g.group for g in groups[:SHOWN]]
    for kind in ("across", "within", "slot"):
        shown += [t.group for t in triggers if t.kind == kind][:SHOWN]
    return sorted(set(shown))


def _thumbnails(run: Path, parts: Sequence[Piece], rows: set[int]) -> None:
    missing = {row for row in rows if not (run / "pictures" / f"{row}.png").exists()}
    for row, image in _images(parts, missing):
        image.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
        with atomic(run / "pictures" / f"{row}.png") as temporary:
            image.save(temporary, "PNG")


def _export(run: Path, target: Path) -> None:
    with atomic(target) as temporary:
        shutil.copyfile(run / "keep.parquet", temporary)
