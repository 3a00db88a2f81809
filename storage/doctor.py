"""Checking a finished table byte by byte, and mending what is not its rows.

Metadata follow from the plan and the rows. Damaged rows are *condemned*, and computed again by the
step that wrote them when it is next asked for the table.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from storage.damage import CorruptMetadata, CorruptShard
from storage.locations import BadObject, Location, NotFound
from storage.records import MAX_RECORD, canonical_json, digest, read_json
from storage.tables import SealedTable, TablePlan, TableWriter, array_sum, receipt, seal_record

__all__ = [
    "Damage",
    "clear_condemned",
    "condemn",
    "find_damage",
    "mend_metadata",
    "read_condemned",
    "unseal",
]

_CONDEMNED = "condemned.json"

Damage = CorruptShard | CorruptMetadata


def find_damage(table: SealedTable[Any]) -> list[Damage]:
    """Check every byte of a table; return what is wrong, one entry per array of a shard or file.

    Reads all rows once, one array of one shard at a time.
    """
    plan, location = table.plan, table.location
    found: list[Damage] = _wrong_zarr_metadata(location, plan)
    seal = seal_record(plan, location.get("plan.json"), table.content_hash)
    if location.get("sealed.json") != seal:
        found.append(CorruptMetadata("sealed.json", "not what was sealed", location.url))
    recorded: list[bytes] = []
    differing: dict[int, dict[str, str]] = {}
    unreadable: set[int] = set()
    for shard in plan.shards:
        recorded.append(_receipt(location, shard))
        sums: dict[str, str] = {}
        start = shard * plan.shard_rows
        for column in plan.columns:
            try:
                values = table.rows(column.path, start, start + plan.shard_size(shard))
            except CorruptShard as error:
                found.append(error)
                unreadable.add(shard)
            except CorruptMetadata:
                unreadable.add(shard)
            else:
                sums[column.path] = array_sum(values)
        if shard not in unreadable and receipt(plan, shard, sums) != recorded[-1]:
            differing[shard] = sums
    if digest(recorded) == table.content_hash:
        # The receipts are as they were sealed, so it is the rows that are not.
        for shard, sums in differing.items():
            expected = read_json(recorded[shard])["sha256"]
            found += [
                CorruptShard(path, shard, "digest", location.url)
                for path, value in sums.items()
                if expected[path] != value
            ]
    else:
        suspects = [f"receipts/{shard}.json" for shard in sorted({*differing, *unreadable})]
        found += [
            CorruptMetadata(path, "digest", location.url) for path in suspects or ["sealed.json"]
        ]
    return found


def condemn(table: SealedTable[Any], damage: Sequence[CorruptShard]) -> None:
    """Note which arrays of which shards are to be computed again, by the step that wrote them.

    Their bytes stay until they are replaced, since most of them may still be good.
    """
    noted: dict[str, list[str]] = {}
    for error in damage:
        noted.setdefault(str(error.shard), []).append(error.array)
    table.location.put(_CONDEMNED, canonical_json(noted))


def read_condemned(location: Location) -> dict[int, list[str]]:
    """What :func:`condemn` noted: shard → paths of its damaged arrays."""
    try:
        noted = read_json(location.get(_CONDEMNED, most=MAX_RECORD))
    except NotFound:
        return {}
    return {int(shard): paths for shard, paths in noted.items()}


def clear_condemned(location: Location) -> None:
    """Declare everything that was condemned to be whole again."""
    location.delete(_CONDEMNED)


def unseal(location: Location) -> None:
    """Take away plan and seal, where one of them is damaged; who wrote them will again.

    All shards and receipts stay, so nothing is computed for it. A step's reference goes too, since
    it would say that all is done.
    """
    for name in ("reference.json", "sealed.json", "plan.json"):
        location.delete(name)


def mend_metadata(table: SealedTable[Any], damage: Sequence[CorruptMetadata]) -> None:
    """Write damaged Zarr metadata and receipts anew.

    Raises
    ------
    ValueError
        If the receipts do not come out as they were sealed; nothing is lost by it.
    """
    writer = TableWriter(table.location, table.plan)
    paths = [error.path for error in damage]
    for path in paths:
        if path.endswith("zarr.json"):
            table.location.delete(path)
    writer.prepare()
    recorded = [_receipt(table.location, shard) for shard in table.plan.shards]
    for shard in table.plan.shards:
        if f"receipts/{shard}.json" in paths:
            start, size = shard * table.plan.shard_rows, table.plan.shard_size(shard)
            sums = {
                column.path: array_sum(table.rows(column.path, start, start + size))
                for column in table.plan.columns
            }
            recorded[shard] = receipt(table.plan, shard, sums)
    if digest(recorded) != table.content_hash:
        raise ValueError(
            f"the receipts of {table.location.url} cannot be restored from its rows: "
            "delete the folder and run again."
        )
    for shard in table.plan.shards:
        if f"receipts/{shard}.json" in paths:
            table.location.put(f"receipts/{shard}.json", recorded[shard])


def _receipt(location: Location, shard: int) -> bytes:
    try:
        return location.get(f"receipts/{shard}.json")
    except NotFound:
        return b""


def _wrong_zarr_metadata(location: Location, plan: TablePlan) -> list[Damage]:
    """Compare what stands beside the arrays with what the plan would have written there."""
    expected = Location(f"memory://{uuid.uuid4().hex}")
    TableWriter(expected, plan).prepare()
    found: list[Damage] = []
    for path in sorted(path for path in expected.walk("rows") if path.endswith("zarr.json")):
        try:
            same = read_json(location.get(path, most=MAX_RECORD)) == read_json(expected.get(path))
            reason = "not what was planned"
        except (NotFound, BadObject, ValueError) as error:
            same, reason = False, type(error).__name__
        if not same:
            found.append(CorruptMetadata(path, reason, location.url))
    expected.delete_folder("")
    return found
