"""The benchmark of the HTTP service runs, and every kind of answer comes."""

from tests.benchmarks.service_speed import KINDS, measure


def test_every_kind_of_answer_is_measured():
    rows = measure(seconds=0.3)
    assert [row["answer"] for row in rows] == [kind for kind, _ in KINDS]
    assert all(row["requests_per_second"] > 0 for row in rows)
