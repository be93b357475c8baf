"""A finished data audit as an index: another adds to its rows, and a picture is answered with those most like it."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unmemorize.core.criteria import Criterion
from unmemorize.core.errors import UserError
from unmemorize.core.files import kind_of
from unmemorize.core.run import FINISHED, RunRecord, Source, load_record, require_same_versions
from unmemorize.core.shards import Shards
from unmemorize.data.captions import pieces
from unmemorize.data.duplicates import is_near
from unmemorize.data.hashes import Looks, copy_cosine, similarity
from unmemorize.data.intake import AuditedPiece, row_batches, rows_of, source_of
from unmemorize.data.items import Piece

log = logging.getLogger(__name__)

Order = tuple[bool, float, float, int]

BATCH = 8192  # rows that a picture is compared with at once: 13 MB


def require_audit(run: Path, option: str) -> RunRecord:
    """The record of a data audit that is finished, and was made by these versions: others hash otherwise.

    Raises:
        UserError: There is none, or it is of other versions.
    """
    record = load_record(run)
    if record is None or record.status != FINISHED or not (run / "data.json").exists():
        raise UserError(f"{option} {run}: no finished data audit: name the run directory of one")
    require_same_versions(run)
    return record


def audited_pieces(run: Path, pictures: bool = True) -> list[AuditedPiece]:
    """The pieces that a finished audit has read, and where its pictures are, if they are wanted.

    Raises:
        UserError: A file of its rows is missing or damaged.
    """
    files = rows_of(run)
    shards = Shards.of(run / "shards" / "data", len(files), 1)
    for number in range(len(files)):
        if not shards.is_done(number):
            raise UserError(f"{shards.path(number)}: missing or damaged: type the command of {run} again, then this")
    places = _where_pictures_are(run) if pictures else [None] * len(files)
    return [AuditedPiece(run, number, piece) for number, piece in enumerate(places)]


def _where_pictures_are(run: Path) -> list[Piece | None]:
    """What each piece of a finished audit was read from; None where that is no longer what it was."""
    record, count = load_record(run), len(rows_of(run))
    assert record is not None
    earlier, own = record.data.get("add"), record.data["source"]
    before: list[Piece | None] = []
    if earlier is not None:
        before = [None] * earlier.count
        place = load_record(Path(earlier.source))
        if place is not None and place.digest == earlier.sha256:
            before = _where_pictures_are(Path(earlier.source))
    source, column = Path(own.source), str(record.spec["column"])
    if kind_of(source) != "nothing" and source_of(source, column).sha256 == own.sha256:
        return [*before, *pieces(source, column)]
    log.warning("%s: not what %s has read: its pictures are not shown", source, run)
    return [*before, *[None] * (count - len(before))]


def index_source(run: Path, option: str, network: str = "") -> Source:
    """What a run's record says of an audit that it uses; `count` is that of its pieces.

    Args:
        run: The run directory of the audit that is used.
        option: What names it.
        network: The hash of the SSCD file that the using run has, if any.

    Raises:
        UserError: It is no finished audit, or has vectors of another network, or none.
    """
    record = require_audit(run, option)
    require_network(record, f"{option} {run}", network)
    return Source(source=str(run), sha256=record.digest, count=len(rows_of(run)))


def require_network(record: RunRecord, named: str, network: str) -> None:
    """Refuse an audit whose network is not the one of this hash; "" is no network.

    Raises:
        UserError: It has another, or none, or one where none is wanted; `named` is the audit as the user has named it.
    """
    there = record.data.get("sscd")
    if there is None and network:
        raise UserError(f"{named}: audited without --sscd: leave it out, or audit that source with it first")
    if there is not None and there.sha256 != network:
        which = "another" if network else "an"
        raise UserError(f"{named}: audited with {which} SSCD network: name {there.source} with --sscd")


@dataclass(frozen=True)
class Match:
    """A row of an index beside a picture: how alike they are, and how many bits of their perceptual hashes differ.

    `sscd` is the cosine of their SSCD vectors, if both have one.
    """

    id: str
    caption: str | None
    cosine: float
    bits: int
    equal: bool
    near: bool
    sscd: float | None = None

    @property
    def order(self) -> Order:
        """The higher, the more alike."""
        return self.equal, self.sscd or 0, self.cosine, -self.bits


def nearest(run: Path, sought: Looks, top: int, is_copy: Criterion | None = None) -> list[Match]:
    """The `top` rows of a finished audit whose pictures are most like one, the most alike first.

    Every row is compared, in the order that they were read: the first of equals goes first.

    Args:
        run: The run directory.
        sought: The picture; where it has an SSCD vector, rows are ordered by that.
        top: How many rows are wanted.
        is_copy: When two pictures are one by their SSCD cosine.
    """
    best: list[tuple[Order, int, Match]] = []
    for place, match in enumerate(_matches(run, sought, is_copy)):
        entry = (match.order, -place, match)
        if len(best) < top:
            heapq.heappush(best, entry)
        elif entry > best[0]:
            heapq.heapreplace(best, entry)
    return [match for _, _, match in sorted(best, reverse=True)]


def _matches(run: Path, sought: Looks, is_copy: Criterion | None) -> Iterator[Match]:
    columns = ["id", "caption", "pixels", "perceptual", "embedding", "sscd"]
    for path in rows_of(run):
        for batch in row_batches(path, columns, BATCH):
            rows = [row for row in batch.to_pylist() if row["pixels"] is not None]
            if not rows:
                continue
            cosines = similarity([sought.embedding] * len(rows), [row["embedding"] for row in rows])
            for row, cosine in zip(rows, np.minimum(cosines, 1).tolist(), strict=True):
                bits = (row["perceptual"] ^ sought.perceptual).bit_count()
                equal = row["pixels"] == sought.pixels
                sscd = copy_cosine(sought.sscd, row["sscd"])
                near = equal or is_near(bits, cosine) or (is_copy is not None and sscd is not None and is_copy(sscd))
                yield Match(row["id"], row["caption"], cosine, bits, equal, near, sscd)
