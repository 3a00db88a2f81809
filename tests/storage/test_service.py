"""The HTTP service: what it serves, and what it refuses."""

from __future__ import annotations

import json
import os
import pkgutil
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.artifacts import Registry
from storage.graph.concept_graph import ConceptGraph
from storage.service import create_app, serve

GRAPH = ConceptGraph.from_columns(
    {"level": [0, 1, 2], "index": [0, 0, 0], "label": ["cat", None, None]},
    {
        "source": ["0:0", "1:0"],
        "target": ["1:0", "2:0"],
        "strength": [1.0, 0.5],
        "confidence": [1.0, 0.5],
    },
)


@pytest.fixture
def registry(tmp_path):
    registry = Registry(tmp_path / "registry")
    (tmp_path / "secret.txt").write_text("secret")
    files = {f"graph/{path}": data for path, data in GRAPH.files().items()}
    registry.publish("toy", files | {"report.html": b"<!doctype html>1"}, fingerprint="1")
    registry.publish("toy", {"report.html": b"<!doctype html>2"}, fingerprint="2")
    registry.promote("toy", 1)
    return registry


def client_of(registry):
    """A client of the service over a registry."""
    from fastapi.testclient import TestClient

    return TestClient(
        create_app(registry), base_url="http://localhost:8420", raise_server_exceptions=False
    )


@pytest.fixture
def client(registry):
    return client_of(registry)


def test_everything_can_be_read(client, registry):
    assert client.get("/artifacts").json() == ["toy"]
    assert [v["version"] for v in client.get("/artifacts/toy/versions").json()] == [1, 2]
    assert client.get("/artifacts/toy/aliases").json() == {"latest": 2, "production": 1}
    root = "/artifacts/toy/versions"
    assert client.get(f"{root}/latest").json()["version"] == 2
    manifest = client.get(f"{root}/production").json()
    assert manifest == json.loads(registry.load("toy", 1).manifest.to_bytes())
    for path in manifest["files"]:
        assert client.get(f"{root}/1/files/{path}").content == registry.load("toy", 1).read(path)
    report = client.get(f"{root}/1/report")
    assert report.text == "<!doctype html>1"
    assert report.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in report.headers["content-security-policy"]


def test_the_graph_can_be_asked(client):
    root = "/artifacts/toy/versions/production/nodes"
    around = client.get(f"{root}/1:0").json()
    assert around["node"]["level"] == 1
    assert [edge["source"] for edge in around["parents"]] == ["0:0"]
    assert [edge["target"] for edge in around["children"]] == ["2:0"]
    assert client.get(f"{root}/2:0/ancestors").json() == ["0:0", "1:0"]
    assert client.get(f"{root}/0:0/descendants").json() == ["1:0", "2:0"]
    near = client.get(f"{root}/0:0/neighbourhood", params={"depth": 1}).json()
    assert [n["id"] for n in near["nodes"]] == ["0:0", "1:0"]
    assert client.get(f"{root}/0:0/neighbourhood", params={"depth": 0}).status_code == 422
    assert client.get("/artifacts/toy/versions/2/nodes/0:0").status_code == 404


def test_answers_are_cached_by_etag(client):
    fixed = client.get("/artifacts/toy/versions/1/report")
    moving = client.get("/artifacts/toy/versions/production/report")
    assert "immutable" in fixed.headers["cache-control"]
    assert "no-cache" in moving.headers["cache-control"]
    again = client.get(
        "/artifacts/toy/versions/production/report",
        headers={"If-None-Match": moving.headers["etag"]},
    )
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(
        "/artifacts/toy/versions/2/report", headers={"If-None-Match": moving.headers["etag"]}
    )
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/toy/versions/1/files/../../../secret.txt",
        "/artifacts/toy/versions/1/files/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        "/artifacts/toy/versions/1/files/..%2f..%2f..%2fsecret.txt",
        "/artifacts/toy/versions/1/files//etc/passwd",
        "/artifacts/..%2f..%2fetc/versions",
        "/artifacts/%2e%2e/versions",
        "/artifacts/toy/versions/..%2f1",
        "/artifacts/toy%00/versions",
        "/artifacts/toy/versions/99",
        "/artifacts/nobody/versions",
        "/artifacts/toy/versions/1/nodes/9:9",
        "/artifacts/toy/versions/" + "9" * 5000,
    ],
)
def test_what_is_not_there_is_refused(client, path):
    response = client.get(path)
    assert response.status_code in (404, 422)
    assert "secret" not in response.text.replace("secret.txt", "")


def test_a_token_is_asked_for_everywhere(registry):
    from fastapi.testclient import TestClient

    app = create_app(registry, token="s3cret")
    client = TestClient(app, base_url="http://[::1]", raise_server_exceptions=False)
    paths = [
        "/",
        "/artifacts",
        "/artifacts/toy/1/",
        "/openapi.json",
        "/artifacts/toy/versions/1/report",
        "/artifacts/no/aliases",
    ]
    for path in paths:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            response = client.get(path, headers=headers)
            assert response.status_code == 401, path
            assert response.headers.get_list("www-authenticate") == [
                "Bearer",
                'Basic realm="strata"',
            ]
    browser = b64encode(b"anyone:s3cret").decode()
    for allowed in ("Bearer s3cret", f"Basic {browser}"):
        answer = client.get("/artifacts", headers={"Authorization": allowed})
        assert answer.json() == ["toy"]


def test_it_is_read_only(client):
    schema = client.get("/openapi.json").json()
    assert {method for methods in schema["paths"].values() for method in methods} == {"get"}
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/artifacts").status_code == 405


def test_damage_is_told_by_file_name(client, registry):
    (registry.load("toy", 1).path / "report.html").write_bytes(b"x")
    response = client.get("/artifacts/toy/versions/1/report")
    assert response.status_code == 502
    assert response.json()["files"] == ["report.html"]


def test_the_world_is_served_only_with_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv("STRATA_TOKEN", raising=False)
    with pytest.raises(ValueError, match="STRATA_TOKEN"):
        serve(str(tmp_path), host="0.0.0.0")


def test_people_find_every_version_and_its_atlas(client, registry):
    registry.publish("bare", {f"graph/{k}": v for k, v in GRAPH.files().items()}, fingerprint="3")
    registry.publish(
        "bare", {"notes.txt": b""}, fingerprint="4", status="rejected", rejections=["no fit"]
    )
    index = client.get("/")
    assert index.headers["content-type"].startswith("text/html")
    for link in ("artifacts/toy/1/", "artifacts/toy/2/", "artifacts/bare/1/"):
        assert f'href="{link}"' in index.text
    assert ">production<" in index.text
    assert ">rejected<" in index.text
    assert client.get("/artifacts/toy/production/").text == "<!doctype html>1"
    # A version that brought no page is drawn from its graph.
    drawn = client.get("/artifacts/bare/1/")
    assert "<title>bare, version 1" in drawn.text
    assert "default-src 'none'" in drawn.headers["content-security-policy"]
    assert client.get("/artifacts/bare/2/").status_code == 404
    again = client.get("/artifacts/bare/1/", headers={"If-None-Match": drawn.headers["etag"]})
    assert again.status_code == 304


def test_what_the_client_has_is_not_read_again(client, registry):
    etag = client.get("/artifacts/toy/versions/1/report").headers["etag"]
    (registry.load("toy", 1).path / "report.html").unlink()
    again = client.get("/artifacts/toy/versions/1/report", headers={"If-None-Match": etag})
    assert again.status_code == 304


def test_no_request_of_the_schema_breaks_it(registry):
    """Schemathesis sends what the service's own schema allows, and what it does not allow."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", create_app(registry, hosts=["testserver"])
    )
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert len(operations) == 12
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    cases = st.one_of([o.as_strategy(generation_mode=mode) for o in operations for mode in modes])

    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def sent(case):
        assert case.call().status_code < 500

    sent()


@pytest.mark.parametrize("token", [None, "s3cret"])
@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8420", True),
        ("LOCALHOST:9", True),
        ("[::1]:8420", True),
        ("evil.example", False),
        ("evil.example:8420", False),
        ("127.0.0.1.evil.example", False),
        ("localhost:8420@evil.example", False),
        ("localhost.", False),
        ("", False),
    ],
)
def test_a_page_of_another_name_reads_nothing(registry, token, host, let_in):
    from fastapi.testclient import TestClient

    client = TestClient(create_app(registry, token=token), base_url="http://localhost")
    headers = {"Host": host} | ({"Authorization": f"Bearer {token}"} if token else {})
    for path in ("/", "/artifacts", "/openapi.json", "/nowhere"):
        status = client.get(path, headers=headers).status_code
        assert (status != 421) == let_in, path
    named = create_app(registry, token=token, hosts=["evil.example"])
    status = TestClient(named, base_url="http://localhost").get("/artifacts", headers=headers)
    assert (status.status_code == 200) == (host.split(":")[0] == "evil.example")


def test_allowed_hosts_are_names():
    for name in ("http://x", "x:80", "x/y", ""):
        with pytest.raises(ValueError, match="without scheme, port or path"):
            serve("memory://none", allowed_hosts=[name])


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=0-", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, "bytes */10"),
        ("bytes=-0", 416, None, "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=" + "9" * 400 + "-", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_a_part_of_a_file_can_be_asked_for(registry, client, asked, status, body, content_range):
    registry.publish("part", {"digits.txt": b"0123456789"}, fingerprint="1")
    url = "/artifacts/part/versions/1/files/digits.txt"
    answer = client.get(url, headers={"Range": asked})
    assert answer.status_code == status
    assert answer.headers.get("content-range") == content_range
    if body is not None:
        assert answer.content == body
        assert answer.headers["content-length"] == str(len(body))
        assert answer.headers["accept-ranges"] == "bytes"


def test_names_that_are_asked_for_take_no_memory(registry, client):
    for number in range(1500):
        with pytest.raises(KeyError, match="has no artifact"):
            registry.resolve(f"nobody-{number}")
    assert len(registry._shelves) <= 1024
    assert client.get("/artifacts/toy/aliases").status_code == 200


@pytest.mark.parametrize(
    ("path", "work"),
    [
        ("/artifacts/bare/1/", "storage.atlas.render"),
        ("/artifacts/bare/versions/1/nodes/1:0", "storage.graph.concept_graph.ConceptGraph.node"),
    ],
)
def test_many_who_ask_for_a_page_have_it_drawn_by_few(registry, client, monkeypatch, path, work):
    files = {f"graph/{name}": data for name, data in GRAPH.files().items()}
    registry.publish("bare", files, fingerprint="1")
    at_once, most = [], []
    plain = pkgutil.resolve_name(work)

    def slow(*arguments):
        at_once.append(None)
        most.append(len(at_once))
        time.sleep(0.1)
        at_once.pop()
        return plain(*arguments)

    monkeypatch.setattr(work, slow)
    with client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.get(path).status_code, range(12)))
    assert answers == [200] * 12
    assert 1 <= max(most) <= 2


def test_a_part_is_only_of_the_version_that_the_client_has(registry, client):
    registry.publish("part", {"digits.txt": b"0123456789"}, fingerprint="1")
    url = "/artifacts/part/versions/1/files/digits.txt"
    etag = client.get(url).headers["etag"]
    for condition, status in ((etag, 206), ('"other"', 200), (f"W/{etag}", 200)):
        answer = client.get(url, headers={"Range": "bytes=1-2", "If-Range": condition})
        assert answer.status_code == status
    unchanged = client.get(url, headers={"Range": "bytes=1-2", "If-None-Match": etag})
    assert unchanged.status_code == 304


def test_head_tells_what_get_would_send(registry, client):
    registry.publish("part", {"digits.txt": b"0123456789"}, fingerprint="1")
    for path in ("/", "/artifacts", "/artifacts/part/versions/1/files/digits.txt", "/artifacts/no"):
        head, get = client.head(path), client.get(path)
        assert head.content == b""
        assert head.status_code == get.status_code
        for name in ("content-length", "etag", "content-type"):
            assert head.headers.get(name) == get.headers.get(name)


def test_a_damaged_artifact_hides_no_other_from_the_index(registry):
    registry.publish("broken", {"x.txt": b""}, fingerprint="1")
    (registry.location.local_path / "broken/records/00000001.json").write_text("{}")
    # What this registry has published it remembers, and believes.
    client = client_of(Registry(registry.url))
    index = client.get("/")
    assert index.status_code == 200
    assert 'href="artifacts/toy/1/"' in index.text
    assert "Cannot be read: " in index.text
    assert client.get("/artifacts/broken/versions").status_code == 502


def test_a_file_that_has_changed_is_not_served(registry, client):
    registry.publish("big", {"x.bin": bytes(300_000)}, fingerprint="1")
    url, path = "/artifacts/big/versions/1/files/x.bin", registry.load("big", 1).path / "x.bin"
    assert client.get(url).content == bytes(300_000)
    with path.open("r+b") as stream:
        stream.seek(200_000)
        stream.write(b"x")
    for headers in ({}, {"Range": "bytes=0-9"}):
        assert client.get(url, headers=headers).status_code == 502
    path.unlink()
    os.mkfifo(path)
    assert client.get(url).json()["files"] == ["x.bin"]
    path.unlink()
    with path.open("wb") as stream:
        stream.truncate(10**13)
    assert "10,000,000,000,000 bytes instead of 300,000" in client.get(url).json()["detail"]


def test_a_store_that_cannot_be_read_is_no_fault_of_the_service(registry, client, monkeypatch):
    from obstore.exceptions import GenericError

    def fail(error):
        monkeypatch.setattr(Registry, "names", lambda _: (_ for _ in ()).throw(error))
        return client.get("/artifacts")

    for error in (
        PermissionError(13, "no"),
        GenericError("GET http://u:secret@h/b?sig=secret\n x"),
    ):
        answer = fail(error)
        assert answer.status_code == 502
        assert "secret" not in answer.text
