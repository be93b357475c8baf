"""Work cut into shards that can be killed and run again, by one process or by several at once.

A shard is a range of items and one Parquet file, a pure function of the run's record and the shard's number. The file
appears under its name only when it is whole, so its existence is the done-marker; a killed run loses the shards in
flight and nothing else. Its footer says which shard of which run it is.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from unmemorize.core.crew import WHOLE, Idle, Part, never
from unmemorize.core.errors import Unfinished, UserError
from unmemorize.core.plain import from_json, to_json
from unmemorize.core.run import Digest, add_to_digest, atomic, is_gone, load_record, this_process, writing
from unmemorize.core.storage import fetch

Item = TypeVar("Item")
Row = dict[str, Any]  # of a table in a run directory
Rows = list[Row]

log = logging.getLogger(__name__)

FOOTER, SEAL = "unmemorize", "unmemorize sha256"  # keys in the metadata of a shard and of a table
BROKEN = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)
ANEW = "delete it and start the same command again, which makes it anew"
DIGITS = 9
AT_ONCE = 1 << 14  # rows that are Python objects at once: some ten MB
ROW_GROUP = 1 << 18  # rows of shards that are written together
POLL = 0.2  # seconds between two looks at what another process does
BEAT = 3.0  # seconds after which a process says again that it is at a shard
SILENT = 20.0  # seconds without that, after which the shard is anyone's


@dataclass(frozen=True)
class Footer:
    """What a shard's file says of itself.

    `start` to `stop` are the items it is made of, of `total`; `rows` is how many rows it has, `record` the digest of
    the run's record, `platform` what else decides the last digits, `content` the SHA-256 of its rows, if it is kept.
    """

    stage: str
    number: int
    start: int
    stop: int
    total: int
    rows: int
    record: str
    platform: str
    content: str = ""

    def belongs(self, other: Footer) -> bool:
        """Whether both are the same shard of the same run, however many rows they have and wherever they were made."""
        return self._place == other._place

    @property
    def _place(self) -> tuple[object, ...]:
        return self.stage, self.number, self.start, self.stop, self.total, self.record


@dataclass(frozen=True)
class Shards:
    """A stage's work in a run, cut into shards.

    `folder` is `shards/STAGE` in the run directory, `total` how many items there are, `size` how many a shard has.
    """

    folder: Path
    total: int
    size: int
    record: str  # the digest of the run's record

    @classmethod
    def of(cls, folder: Path, total: int, size: int) -> Shards:
        """Those of a folder `shards/STAGE`, for the run that it lies in."""
        return cls(folder, total, size, _record(folder))

    @property
    def count(self) -> int:
        """How many shards there are."""
        return -(-self.total // self.size)

    def path(self, number: int) -> Path:
        """A shard's file."""
        return self.folder / f"{number:0{DIGITS}d}.parquet"

    def items(self, number: int) -> range:
        """The items of a shard."""
        return range(number * self.size, min((number + 1) * self.size, self.total))

    def footer(self, number: int, rows: int, content: str = "") -> dict[str, str]:
        """The metadata of a shard's file that has so many rows, and their SHA-256 where that is to be kept."""
        return {FOOTER: to_json(asdict(self._footer(number, rows, content)))}

    def _footer(self, number: int, rows: int, content: str = "") -> Footer:
        items = self.items(number)
        place = (self.folder.name, number, items.start, items.stop, self.total)
        return Footer(*place, rows=rows, record=self.record, platform=_platform(), content=content)

    def is_done(self, number: int) -> bool:
        """Whether a shard's file is there, whole, and of this run."""
        footer = self._footer_of(number)
        return footer is not None and (not footer.content or _is_whole(self.path(number)))

    def _footer_of(self, number: int) -> Footer | None:
        """What a shard's file says of itself, if it is there and of this run; its rows are not looked at."""
        try:
            metadata = pq.read_metadata(self.path(number))
        except BROKEN:
            return None
        footer = _footer(metadata.metadata)
        if footer is None or not footer.belongs(self._footer(number, 0)) or footer.rows != metadata.num_rows:
            return None
        return footer

    def take(
        self, do: Callable[[int], None], part: Part = WHOLE, *, in_order: bool = False, idle: Idle = never
    ) -> Iterator[int]:
        """Call `do` with the numbers of the part's shards that are not done, and yield each shard once it is.

        A shard that another process is at is waited for; the others are done meanwhile, unless each needs those before
        it (`in_order`). While `idle` says so, all are left to other processes.
        """
        left, claims = list(part.shards(self.count)), Claims()
        earlier = {number for number in left if self.path(number).exists()}

        def is_done(number: int) -> bool:
            """Whether a shard is: one that appears meanwhile was whole when it took its name, and joining checks it."""
            return self.is_done(number) if number in earlier else self._footer_of(number) is not None

        while left:
            waiting: list[int] = []  # for other processes
            leave = idle()
            for place, number in enumerate(left):
                if is_done(number):
                    yield number
                elif not leave and self._done_here(number, do, claims):
                    yield number
                    ended = [other for other in waiting if is_done(other)]  # meanwhile, so that progress is true
                    yield from ended
                    waiting = [other for other in waiting if other not in ended]
                elif in_order:
                    waiting = left[place:]
                    break
                else:
                    waiting.append(number)
            left = waiting
            if left:
                time.sleep(POLL)
        for claim in self.folder.glob("*.claim"):  # of processes that were killed before letting go of a whole shard
            if claim.with_suffix(".parquet").exists():
                claim.unlink(missing_ok=True)

    def require_all(self, part: Part) -> None:
        """Go on only where every shard is there, whichever part it is of.

        Raises:
            Unfinished: Some are not.
        """
        if part != WHOLE:
            fetch(self.folder.parent.parent)  # on object storage, what other machines have put there since
        left = sum(self._footer_of(number) is None for number in range(self.count))
        if left:
            raise Unfinished(
                f"part {part.index}/{part.of} of {self.folder.name} is done; of other parts {left} of {self.count} "
                "shards are missing: the last part to end finishes the run, or this command typed again"
            )

    def _done_here(self, number: int, do: Callable[[int], None], claims: Claims) -> bool:
        """Whether the shard is done now, by this process: False while another one is at it."""
        with claims.claim(self.path(number)) as mine:
            if mine and not self.is_done(number):  # as it may be since just before it was claimed
                if self.path(number).exists():
                    log.warning("%s: damaged, or of another run: made anew", self.path(number))
                do(number)
        return mine


def run_shards(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Rows],
    *,
    folder: Path,
    size: int,
    part: Part = WHOLE,
    in_order: bool = False,
    idle: Idle = never,
) -> Iterator[int]:
    """Call `work` on `size` items at a time, write its rows to `folder`, and yield how many items are done.

    Shards already written are not done again, nor those that another process works on. What `work` itself writes must
    be whole before it returns.

    Args:
        items: All of them; only those of the part's shards are touched.
        work: A function from some of the items to rows.
        folder: `shards/STAGE` in a run directory.
        size: Items a shard.
        part: The part of the shards that is done.
        in_order: Whether a shard needs those before it.
        idle: Whether all shards are left to other processes for now.
    """
    shards = Shards.of(folder, len(items), size)

    def do(number: int) -> None:
        own = shards.items(number)
        table = pa.Table.from_pylist(work(items[own.start : own.stop]))
        with atomic(shards.path(number)) as temporary:
            footer = shards.footer(number, len(table), _content(table))
            pq.write_table(table.replace_schema_metadata(footer), temporary)

    done = 0
    for number in shards.take(do, part, in_order=in_order, idle=idle):
        done += len(shards.items(number))
        yield done


class Claims:
    """What this process knows of the claims of others.

    Claims save work. Nothing rests on them: a shard that is done twice has the same bytes. A process that is at a shard
    touches its claim again and again. One that is gone, stopped or cut off does not, and its shard is taken over.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[float, float]] = {}  # when a claim was touched, by its host, and seen to be, by us

    @contextmanager
    def claim(self, path: Path) -> Iterator[bool]:
        """Whether this process may do the shard of this file: False while another one does."""
        claim = path.with_suffix(".claim")
        if self._is_left(claim):
            claim.unlink(missing_ok=True)
        try:
            with writing(claim):
                claim.parent.mkdir(parents=True, exist_ok=True)
                with claim.open("x", encoding="utf-8") as file:
                    file.write(to_json(this_process()))
        except FileExistsError:
            yield False
            return
        over = threading.Event()
        beating = threading.Thread(target=_beat, args=(claim, over), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            over.set()
            beating.join()
            claim.unlink(missing_ok=True)

    def _is_left(self, claim: Path) -> bool:
        """Whether the process that claimed is gone, or silent for as long as this one has watched."""
        try:
            with claim.open(encoding="utf-8") as file:  # opened, since a network file system then asks anew
                touched, content = os.fstat(file.fileno()).st_mtime, file.read()
        except OSError:
            return False
        if touched != self._seen.get(claim, (None,))[0]:
            self._seen[claim] = touched, time.monotonic()
        if time.monotonic() - self._seen[claim][1] > SILENT:
            return True
        try:
            host, pid = from_json(content)
        except (ValueError, TypeError):
            return False  # being written, or left half written
        return is_gone(host, pid) or (host, pid) == this_process()


def _beat(claim: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        try:
            os.utime(claim)
        except OSError:  # taken over by another process, or out of reach: the work goes on
            return


def write_rows(path: Path, rows: Iterable[Row], schema: pa.Schema | None = None) -> None:
    """Write rows as a table of a run, in one piece; without a schema, columns are those of the first row."""
    left = iter(rows)
    tables = (pa.Table.from_pylist(some, schema) for some in iter(lambda: list(islice(left, AT_ONCE)), []))
    first = next(tables, None)
    if first is None:
        first = pa.Table.from_pylist([], schema)
    _write(path, first.schema, chain([first], tables))


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables as one that says what it holds, so that one that was changed or damaged since is told from it."""
    content = hashlib.sha256()
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            _add_content(content, table)
            writer.write_table(table)
        writer.add_key_value_metadata({SEAL: content.hexdigest()})


def _content(table: pa.Table) -> str:
    """SHA-256 of a table's rows, whichever file they are in."""
    content = hashlib.sha256()
    _add_content(content, table)
    return content.hexdigest()


def _add_content(content: Digest, table: pa.Table) -> None:
    for batch in table.to_batches(max_chunksize=AT_ONCE):
        add_to_digest(content, (repr(row).encode(errors="surrogatepass") for row in batch.to_pylist()))


def require_whole(folder: Path) -> None:
    """Refuse tables of a run that hold something else than what was written.

    Raises:
        UserError: One is damaged, or was written by somebody else.
    """
    for path in sorted(folder.glob("*.parquet")):
        content = hashlib.sha256()
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(AT_ONCE):
                    _add_content(content, pa.Table.from_batches([batch]))
                whole = (file.metadata.metadata or {}).get(SEAL.encode()) == content.hexdigest().encode()
        except BROKEN:
            whole = False
        if not whole:
            raise UserError(f"{path}: damaged: {ANEW}")


def merge_shards(folder: Path, target: Path) -> None:
    """Join the shards in order into one file, some at a time.

    Raises:
        UserError: One is missing, damaged, or of another run or stage.
    """
    paths = sorted(folder.glob("*.parquet"), key=lambda path: (len(path.name), path.name))
    schemas, footers = dict[pa.Schema, None](), dict[Path, Footer | None]()
    for path in paths:
        schema, footers[path] = _read_schema(path)
        schemas[schema] = None
    _check_complete(folder, footers)
    platforms = sorted({footer.platform for footer in footers.values() if footer})
    if len(platforms) > 1:
        said = "; ".join(platforms)
        log.warning("%s: made on several platforms: %s: last digits may differ from those of any one", folder, said)
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        for path in paths:
            _read(path)  # which refuses the one that was changed
        raise
    _write(target, schema, _joined(paths, schema))


def _joined(paths: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of shards in order, as tables of many shards: a row group of the file that they are written to."""
    held, rows = [schema.empty_table()], 0
    for path in paths:
        table = _read(path).replace_schema_metadata(None)
        held.append(table)
        rows += len(table)
        if rows >= ROW_GROUP:
            yield pa.concat_tables(held, promote_options="permissive")
            held, rows = [schema.empty_table()], 0
    if rows:
        yield pa.concat_tables(held, promote_options="permissive")


def _read_schema(path: Path) -> tuple[pa.Schema, Footer | None]:
    """A shard's columns and its footer.

    Raises:
        UserError: It is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.schema_arrow.remove_metadata(), _footer(file.metadata.metadata)
    except BROKEN as error:
        raise UserError(f"{path}: damaged: {ANEW}") from error


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:  # a dataset, as which `read_table` takes a file, costs a millisecond more
            table = file.read()
    except BROKEN as error:
        raise UserError(f"{path}: damaged: {ANEW}") from error
    footer = _footer(table.schema.metadata)
    if footer is None or footer.rows != len(table) or footer.content not in ("", _content(table)):
        raise UserError(f"{path}: damaged: {ANEW}")
    return table


def _is_whole(path: Path) -> bool:
    try:
        _read(path)
    except UserError:
        return False
    return True


def _check_complete(folder: Path, footers: Mapping[Path, Footer | None]) -> None:
    """Refuse shards that are not all there is of one stage of one run."""
    record, place, total = _record(folder), 0, None
    for number, (path, footer) in enumerate(footers.items()):
        if footer is None or (footer.stage, footer.record) != (folder.name, record):
            raise UserError(f"{path}: of another run: start the same command again, which makes it anew")
        total = footer.total
        if (footer.number, footer.start) != (number, place):
            break
        place = footer.stop
    if place != total:
        of = "all" if total is None else total
        raise UserError(f"{folder}: {place} of {of} items in a row are there: start the other parts, then this again")


def _footer(metadata: Mapping[bytes, bytes] | None) -> Footer | None:
    try:
        return Footer(**from_json((metadata or {})[FOOTER.encode()]))
    except (LookupError, ValueError, TypeError):
        return None


def _record(folder: Path) -> str:
    """The digest of the record of the run that a folder `shards/STAGE` lies in; empty outside of one."""
    record = load_record(folder.parent.parent)
    return "" if record is None else record.digest


def _platform() -> str:
    """What decides the last digits of a number beside settings and versions: the processor, its threads, the device."""
    facts = [platform.system(), platform.machine()]
    torch = sys.modules.get("torch")  # where it is not loaded, it computed nothing
    if torch is not None:
        facts += [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            facts.append(torch.cuda.get_device_name())
    return ", ".join(facts)
