"""What thousands of versions cost: seconds on a disk, requests to an object store."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.artifacts import Registry, Retention
from storage.registry.signatures import Keyring, SigningKey
from tests.backends import S3_ENVIRONMENT

MANY = 2000
SECOND = 1.0
KEY = SigningKey.parse("hmac-sha256:" + "ab" * 16, variable="x")
KEYRING = Keyring(KEY, (KEY,))


@pytest.fixture(autouse=True)
def own_witness(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_WITNESS", str(tmp_path / "witness"))


@pytest.fixture
def memory():
    """A folder in memory where there is one: how fast a disk deletes is not what is measured."""
    shared = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=shared if shared.is_dir() else None)
    yield Path(folder)
    shutil.rmtree(folder)


def fill(url, n, *, files):
    """Records of n versions as publishers write them, every tenth rejected; files on request."""
    from storage.registry.shelves import VersionRecord

    shelf = Registry(url, keyring=KEYRING)._shelf("toy")
    ledger, latest = shelf.records, 0
    for number in range(1, n + 1):
        status = "published" if number % 10 else "rejected"
        latest = number if status == "published" else latest
        record = VersionRecord(
            name="toy",
            version=number,
            folder=f"20260101T000000Z-{number:012x}",
            status=status,
            fingerprint=f"f{number}",
            content_hash="0" * 64,
            manifest_sha256="0" * 64,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            parent=None,
            latest=latest,
        )
        before = ledger.entry(number - 1) if number > 1 else None
        first = ledger.entry(1) if number > 1 else None
        ledger.append(record.model_dump(mode="json"), after=before, origin=first)
        for path in ("manifest.json", "README.md") if files else ():
            shelf.location.put(f"versions/{record.folder}/{path}", b"x")


def seconds(ask):
    """Of this process's own work: other programs on the machine do not count."""
    begun = time.process_time()
    answer = ask()
    return answer, time.process_time() - begun


def test_two_thousand_versions_on_a_disk_take_less_than_a_second(memory):
    fill(memory, MANY, files=True)
    Registry(memory, keyring=KEYRING).promote("toy", 5)

    def fresh():
        return Registry(memory, keyring=KEYRING)

    latest, took = seconds(lambda: fresh().resolve("toy"))
    assert latest.version == MANY - 1
    assert took < SECOND
    versions, took = seconds(lambda: fresh().versions("toy"))
    assert len(versions) == MANY
    assert took < SECOND
    collected, took = seconds(lambda: fresh().collect_garbage(retention=Retention(keep_last=30)))
    assert collected.versions == {"toy": (*range(1, 5), *range(6, MANY - 29))}
    assert took < SECOND
    assert len(list((memory / "toy/versions").iterdir())) == 31
    assert fresh().resolve("toy", "production").version == 5


@contextmanager
def counting_s3():
    """An empty bucket, and the list of all requests that reach it."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app, requests = DomainDispatcherApplication(create_backend_app), []

    def counted(environ, start_response):
        requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        return app(environ, start_response)

    server = make_server("127.0.0.1", 0, counted, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, requests
    finally:
        server.shutdown()


@pytest.fixture
def s3(monkeypatch):
    import urllib.request

    with counting_s3() as (port, requests):
        for key, value in S3_ENVIRONMENT.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=5)
        yield requests


def test_requests_of_a_resolve_do_not_grow_with_the_versions(s3):
    """More versions than a store lists at once (a thousand), and a few."""
    asked = {}
    for n in (12, 1012):
        url = f"s3://bucket/{n}"
        fill(url, n, files=False)
        Registry(url, keyring=KEYRING).promote("toy", 7)
        for version, number in (("latest", n), (3, 3), ("production", 7)):
            s3.clear()
            assert Registry(url, keyring=KEYRING).resolve("toy", version).version == number
            asked.setdefault(version, []).append(len(s3))
        s3.clear()
        assert Registry(url, keyring=KEYRING).aliases("toy") == {"latest": n, "production": 7}
        asked.setdefault("aliases", []).append(len(s3))
    assert all(few == many <= 8 for few, many in asked.values()), asked


def test_a_hint_that_lies_costs_requests_and_nothing_else(s3):
    fill("s3://bucket/r", 112, files=False)
    registry = Registry("s3://bucket/r", keyring=KEYRING)
    for hint in (b"100", b"1", b"-5", b"113", b"99999999", b"9" * 5000, b"x", b"", b"\xff", b"112"):
        registry.location.put("toy/records/newest", hint)
        assert Registry("s3://bucket/r", keyring=KEYRING).resolve("toy").version == 112
    registry.location.delete("toy/records/newest")
    assert Registry("s3://bucket/r", keyring=KEYRING).resolve("toy").version == 112
