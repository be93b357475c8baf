"""The data audit: any source to findings, the rows to drop or caption anew, and a page that shows them."""

from __future__ import annotations

import dataclasses
import logging
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
    Source,
    atomic,
    load_record,
    quiet,
    read_json,
    require_same_versions,
    versions,
    write_json,
)
from unmemorize.core.specs import DataSpec
from unmemorize.data.against import compare_with
from unmemorize.data.candidates import Search, Sharded
from unmemorize.data.captions import pieces
from unmemorize.data.copies import CopySearch
from unmemorize.data.curation import KEEP, collect_actions, collect_stakes, group_rows
from unmemorize.data.database import caption_files, check_memory, counts, database, open_parquet, require, write_query
from unmemorize.data.duplicates import (
    SAME,
    Group,
    caption_groups,
    group_pictures,
    picture_groups,
    sampled_pictures,
)
from unmemorize.data.hashes import Looks, Network, looks_of
from unmemorize.data.index import audited_pieces, index_source, nearest, require_audit, require_network
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

log = logging.getLogger(__name__)

SHOWN = 40  # groups, and triggers of a kind, that the page shows with pictures
RISKS = [(name, pa.float64()) for name in ("risk", "risk_low", "risk_high")]  # columns
SMALL = 128  # pixels of a picture on the page


def audit_data(spec: DataSpec, run: Path, progress: Progress = quiet, crew: Crew = ALONE) -> dict[str, Any]:
    """Run or continue a data audit in `run`; returns its summary and leaves `report.html` there.

    Raises:
        UserError: The source or the SSCD file cannot be used, `run` holds another run or lies in the source, or the
            export would overwrite the source.
        Unfinished: Other parts are not done.
        MissingExtra: duckdb or ImageHash is not installed, or onnxruntime for an SSCD file in its format.
    """
    require()
    check_memory(spec.memory)
    _check_places(spec, run)
    is_copy, hashed = _copy_rule(spec.sscd)
    known = {"sscd": Source(source=spec.sscd, sha256=hashed, count=1)} if hashed else {}
    used = {name: index_source(Path(where), f"--{name}", hashed) for name, where in _used(spec).items()}
    parts = _pieces(spec)
    network = _network(spec.sscd)
    record = RunRecord(
        status="running",
        spec={"source": spec.source, "column": spec.column, **_used(spec)},
        versions=versions() | {name: version(name) for name in ("duckdb", "imagehash")},
        model={},
        data={"source": source_of(Path(spec.source), spec.column)} | known | used,
        criterion=Criterion("near-duplicate", SAME, "phash-cosine-16px", higher_is_closer=True),
    )
    with Run.open(run, record) as opened:
        if opened.is_kept:
            return read_json(run / "data.json")
        progress("read", 0, len(parts))
        idle = crew.call(Intake(spec, run, crew.part))
        for done in read_pieces(parts, run, crew.part, idle, network):
            progress("read", done, len(parts))
        require_read(parts, run, crew.part)
        searches = _searched(Searches.of(run, None, is_copy), crew, progress)
        against = _searched(Searches.of(run, Path(spec.against), is_copy), crew, progress) if spec.against else None
        summary = analyse(spec, run, parts, searches, against, progress, network)
        if spec.out:
            _export(run, Path(spec.out))
    build_data_report(run)
    return summary


def nearest_rows(run: Path, picture: Path, top: int, sscd: str = "") -> dict[str, Any]:
    """The rows of a finished audit that are most like a picture; how many were compared, and by which rule.

    Where an audit had an SSCD file and none is named it is asked by hashes alone, which is said: the file may run code,
    and so is never taken from where a run says that it lies.

    Raises:
        UserError: There is no such audit, the picture cannot be read, or the SSCD file is not that of the audit.
        MissingExtra: duckdb or ImageHash is not installed, or onnxruntime for an SSCD file in its format.
    """
    require()
    record = require_audit(run, "nearest")
    summary = read_json(run / "data.json")
    is_copy, hashed = _copy_rule(sscd)
    if not hashed and "sscd" in record.data:
        log.warning("%s: audited with an SSCD network: pictures are compared without it: name it with --sscd", run)
    else:
        require_network(record, str(run), hashed)
    try:
        image = read_picture(picture)
    except Unusable as error:
        raise UserError(f"{picture}: {error}: name a picture") from error
    matches = [dataclasses.asdict(match) for match in nearest(run, looks_of(image, _network(sscd)), top, is_copy)]
    return {"pictures": summary["pictures"], "rule": Searches.of(run, None, is_copy).rule, "matches": matches}


def _copy_rule(weights: str) -> tuple[Criterion | None, str]:
    """When two pictures are copies by the network in an SSCD file, and the file's hash; "" where none is named."""
    if not weights:
        return None, ""
    from unmemorize.data.descriptors import network_rule  # which brings torch

    rule = network_rule(Path(weights))
    return rule, rule.weights or ""


def _network(weights: str) -> Network | None:
    """The network in an SSCD file, where one is named."""
    if not weights:
        return None
    from unmemorize.data.descriptors import load_network

    return load_network(Path(weights))


@dataclass(frozen=True)
class Intake:
    """Reading a source as settings alone, which another process takes shards of."""

    spec: DataSpec
    run: Path
    part: Part = WHOLE

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process, which chooses a GPU once torch is loaded, and before the work."""
        self.__dict__.update(state)
        if self.spec.sscd:
            import unmemorize.data.descriptors  # noqa: F401

    def share(self) -> None:
        """Read pieces until all of the part are read, by whichever process."""
        require_same_versions(self.run)
        record, (_, hashed) = load_record(self.run), _copy_rule(self.spec.sscd)
        if record is not None:
            require_network(record, str(self.run), hashed)  # the file of this name may be another one on this machine
        pieces = _pieces(self.spec, pictures=False)
        for _ in read_pieces(pieces, self.run, self.part, network=_network(self.spec.sscd)):
            pass


@dataclass(frozen=True)
class Searches:
    """The searches for near-duplicates: by hashes, and by the vectors of a network, where there is one."""

    hashes: Search
    copies: CopySearch | None

    @classmethod
    def of(cls, run: Path, other: Path | None, is_copy: Criterion | None) -> Searches:
        """Those of a run, or of one with the rows of another; `is_copy` is the rule of the network."""
        copies = None if is_copy is None else CopySearch(run, other, criterion=is_copy)
        return cls(Search(run, other), copies)

    @property
    def all(self) -> list[Sharded]:
        """Each of them."""
        return [self.hashes] if self.copies is None else [self.hashes, self.copies]

    @property
    def rule(self) -> str:
        """What makes two pictures one."""
        return " or ".join(search.rule for search in self.all)

    @property
    def how(self) -> str:
        """How pairs are found, in words."""
        return "; ".join(search.how for search in self.all)

    @property
    def copied(self) -> list[Path]:
        """The files of pairs that the network takes for copies."""
        return [] if self.copies is None else self.copies.pairs

    def finds(self, one: Looks, other: Looks) -> bool:
        """Whether two pictures would be found to be one."""
        return any(search.finds(one, other) for search in self.all)


def _searched(searches: Searches, crew: Crew, progress: Progress) -> Searches:
    """Searches whose pairs are found, by whichever process."""
    for search in searches.all:
        idle = crew.call(search)
        for done, count in search.take(idle):
            progress("compare", done, count)
    return searches


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
    check_outputs(outputs, [path_of(spec.source), spec.add, spec.against, spec.sscd])


def analyse(
    spec: DataSpec,
    run: Path,
    parts: Sequence[Piece],
    searches: Searches,
    against: Searches | None,
    progress: Progress,
    network: Network | None,
) -> dict[str, Any]:
    """Find duplicates and triggers in the rows that were read, and write them down.

    Args:
        spec: The settings.
        run: The run directory.
        parts: What the rows were read from.
        searches: The pairs of near pictures among them, which are found.
        against: Those with the rows of another audit, where one is named.
        progress: What is told how far it is.
        network: What gives pictures vectors, where there is one.
    """
    skipped = _write_skipped(run)
    with database(run, spec.memory) as connection:
        open_parquet(connection, rows_of(run), "items")
        stages: tuple[tuple[str, Callable[[Any], Any]], ...] = (
            ("pictures", partial(group_pictures, pairs=searches.hashes.pairs, copies=searches.copied)),
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
        "near_duplicates": _near_duplicates(parts, sampled, searches, network),
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


def _against(connection: Any, run: Path, searches: Searches | None) -> dict[str, Any] | None:
    """Write `against.parquet`, where another audit is named; the rule, and how many rows are in the other."""
    if searches is None or searches.hashes.other is None:
        return None
    other = searches.hashes.other
    found = compare_with(
        connection, rows_of(other), searches.hashes.pairs, run / "against.parquet", copies=searches.copied
    )
    return {"run": str(other), "rule": searches.rule, "compared": searches.how, "rows": found}


def _near_duplicates(
    parts: Sequence[Piece], sampled: set[int], searches: Searches, network: Network | None
) -> dict[str, Any]:
    """How near-duplicates were found, and what share of altered copies of a few of the pictures would be, too."""
    pictures = [image for _, image in _images(parts, sampled)]
    recall = measure_recall(pictures, searches.finds, network)
    return {"rule": searches.rule, "compared": searches.how, "copies_planted": len(pictures), "recall": recall}


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
