"""Opening a table whose kind is not known."""

from __future__ import annotations

from typing import Any

from storage.locations import BadObject, Location
from storage.records import read_json
from storage.sealing.damage import CorruptFile, NotSealed
from storage.tables.activations import ActivationSet
from storage.tables.codes import CodeSet
from storage.tables.sealed import SealedTable, small_file

__all__ = ["open_table", "table_type"]


def open_table(location: Location, *, content_hash: str | None = None) -> SealedTable[Any]:
    """Open whichever kind of table lies at `location`; `content_hash` as for the table itself.

    Raises
    ------
    NotSealed
        If there is no finished table.
    CorruptFile
        If plan or seal is not what was written.
    """
    try:
        kind = table_type(small_file(location, "plan.json"))
    except FileNotFoundError:
        if location.exists("sealed.json"):
            raise CorruptFile("plan.json", "missing", location.url) from None
        raise NotSealed(f"{location.url} holds no finished table.") from None
    except BadObject as error:
        raise CorruptFile("plan.json", error.reason, location.url) from None
    except ValueError:
        raise CorruptFile("plan.json", "not readable", location.url) from None
    return kind(location, content_hash=content_hash)


def table_type(plan_json: bytes) -> type[SealedTable[Any]]:
    """The kind of table that a ``plan.json`` describes.

    Raises
    ------
    ValueError
        If it is no JSON.
    """
    plan = read_json(plan_json)
    return CodeSet if isinstance(plan, dict) and "activations" in plan else ActivationSet
