"""Files of a table that are none: looked at before they are read, whoever reads them."""

import os

import pytest

from storage.care.doctor import find_damage
from storage.locations import Location
from storage.sealing.damage import CorruptFile
from storage.tables.opening import open_table
from storage.tables.sealed import CorruptShard
from tests.storage.tables.test_activations import make_plan, write
from tests.storage.tables.test_codes import make_codes

pytestmark = pytest.mark.timeout(60)


def grow(file):
    os.truncate(file, 10 * 2**40)


def make_pipe(file):
    file.unlink()
    os.mkfifo(file)


def make_link(file):
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.fixture(params=["raw", "compressed"])
def table(request, tmp_path):
    location = Location(str(tmp_path / "table"))
    if request.param == "raw":
        return write(location, make_plan()), "levels/low"
    return make_codes(location, n_concepts=(100,))[0], "codes/l0/values"


@pytest.mark.parametrize("spoil", [grow, make_pipe, make_link])
def test_a_shard_that_is_none_is_refused(table, spoil):
    table, array = table
    folder = table.location.local_path / "rows" / array / "c" / "1"
    spoil(folder / "0" if folder.is_dir() else folder)
    opened = open_table(table.location)
    stop = 2 * opened.plan.shard_rows
    with pytest.raises(CorruptShard) as caught:
        opened.rows(array, 0, stop)
    assert (caught.value.array, caught.value.shard) == (array, 1)
    opened.prefetch_shard(array, 1)
    assert [(error.array, error.shard) for error in find_damage(opened)] == [(array, 1)]


@pytest.mark.parametrize("spoil", [grow, make_pipe, make_link])
@pytest.mark.parametrize("name", ["plan.json", "sealed.json", "receipts/1.json", "zarr.json"])
def test_what_describes_a_table_is_measured_before_it_is_read(table, name, spoil):
    table, array = table
    path = f"rows/{array}/zarr.json" if name == "zarr.json" else name
    spoil(table.location.local_path / path)
    with pytest.raises(CorruptFile, match=path):  # noqa: PT012
        opened = open_table(table.location)
        if name.startswith("receipts"):
            raise find_damage(opened)[0]
        opened.array(array)
