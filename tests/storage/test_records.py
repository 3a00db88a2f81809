"""The reader of JSON takes what RFC 8259 has, and nothing that two readers would read as two."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.records import MAX_DEPTH, canonical_json, digest, read_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_written_is_read_again(value):
    assert read_json(canonical_json(value)) == value
    assert read_json(json.dumps(value, indent=1).encode()) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands there twice"),
        (b'[{"b": {"a": 1, "a": 1}}]', "'a' stands there twice"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "too large"),
        (b"9" * 21, "more than 20 digits"),
        (b"9" * 100_000, "more than 20 digits"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'{"\\uDC00": 1}', "half of a surrogate pair"),
        (b"[" * (MAX_DEPTH + 1), "more than 32 deep"),
        (b'{"a":' * 100_000, "more than 32 deep"),
        (b'["]", ' + b"[" * MAX_DEPTH, "more than 32 deep"),
        (b"\xff", "decode"),
        ("{}".encode("utf-16"), "decode"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"", "Expecting value"),
        (b"[1] 2", "Extra data"),
    ],
)
def test_what_is_doubtful_is_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        read_json(data)


def test_brackets_in_texts_are_not_depth():
    value = {"a": "[" * 1000 + '\\"{' * 1000, "b": ["\\", "]"]}
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps("\U0001f600").encode()) == "\U0001f600"


@pytest.mark.parametrize("piece", [b'"', b'\\"', b'"\\', b"[]", b'["', b"\\"])
def test_a_long_text_takes_time_in_proportion(piece):
    begun = time.process_time()
    with pytest.raises(ValueError, match=r"line 1|Extra|deep|Unterminated|Expecting|Invalid"):
        read_json(piece * (2**22 // len(piece)))
    assert time.process_time() - begun < 10


def test_digest_of_parts_is_that_of_the_whole():
    assert digest([b"ab", b"c"]) == digest(b"abc") == digest(memoryview(b"abc"))
