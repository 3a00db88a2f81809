"""The page of results is what the CSVs say."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_the_page_is_what_the_csvs_say(import_benchmark):
    tables = import_benchmark("tables")
    text = tables.PAGE.read_text(encoding="utf-8")
    assert text == tables.page(text), "write it anew: python tests/benchmarks/tables.py"


def test_every_csv_has_a_table_and_every_table_a_place(import_benchmark):
    tables = import_benchmark("tables")
    placed = re.findall(r"<!-- table (\S+) -->", tables.PAGE.read_text(encoding="utf-8"))
    assert sorted(placed) == sorted(tables.TABLES)
    shown = {name.split("__")[0] for name in placed}
    assert shown == {path.stem for path in (HERE / "results").glob("*.csv")}


def test_a_changed_number_is_noticed(import_benchmark, monkeypatch, tmp_path):
    tables = import_benchmark("tables")
    for path in (HERE / "results").glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    changed = tmp_path / "loader_speed.csv"
    changed.write_text(changed.read_text().replace("8.333", "9.333"))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.PAGE.read_text(encoding="utf-8")
    assert "| strata | 8.33 |" in text
    assert "| strata | 9.33 |" in tables.page(text)


def test_no_number_of_a_result_is_typed(import_benchmark):
    """Outside the tables, a decimal fraction or a percentage is no more than a bar."""
    tables = import_benchmark("tables")
    prose = tables._PLACE.sub("", tables.PAGE.read_text(encoding="utf-8"))
    typed = set(re.findall(r"(?<![\w.])\d*\.\d+|\d+ ?%", prose))
    assert typed <= {".9"}
