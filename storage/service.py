"""A small read-only HTTP service over a registry.

Everything that it serves under a version's number is immutable and carries a strong ETag, so that a
client asks once; what an alias names may change and is revalidated. It listens on this machine
alone unless told otherwise, and asks for a token if one is set (``STRATA_TOKEN``): programs send it
as a bearer token, browsers as the password of any user. ``/`` lists all versions for people, and
``/artifacts/NAME/VERSION/`` shows the atlas of one.

A file is verified as a whole before its first byte is sent, once for as long as it is not written
again, and then sent in pieces; should it change meanwhile, the connection is broken. So no memory
grows with a file, nor with the number of clients that read it slowly.

A page of another site may have its own name lead to this machine (DNS rebinding) and would then be
let in by every browser. So the service answers only to names that it was told.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from functools import lru_cache
from typing import Annotated, Any

from anyio import Semaphore
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import (
    HTTPAuthorizationCredentials,
    HTTPBearer,
)
from obstore.exceptions import BaseError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.artifacts import (
    Artifact,
    ArtifactReference,
    BadSignature,
    CorruptArtifact,
    Manifest,
    Registry,
    UnknownArtifact,
)
from storage.index_page import index_page
from storage.locations import StoredObject, without_secrets
from storage.records import canonical_json, digest
from storage.registry.manifests import first_reason
from storage.registry.versions import REPORT_FILE

__all__ = ["LOOPBACK_NAMES", "create_app", "serve"]

TOKEN_VARIABLE = "STRATA_TOKEN"  # noqa: S105 - the name of the variable, not the token
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
LOOPBACK_NAMES = ("127.0.0.1", "[::1]", "localhost")
"""Names by which a client on this machine reaches a service on it."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.ASCII)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_HEAD = "strata.head"
# Pieces in which a body is handed to a connection: what a slow client costs, twice.
_PIECE = 2**16
# Files that are verified, and graphs and atlases that are made, at one time; whoever waits for one
# holds no thread.
_HASHERS = 4
_DRAWERS = 2
_MOST_JSON = 2**23
_MAX_HEADERS = 2**14
_OPEN_ARTIFACTS = 16
_RENDERED_PAGES = 4
_FOREVER = "private, max-age=31536000, immutable"
_REVALIDATE = "private, no-cache"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "graphml": "application/xml",
    "parquet": "application/vnd.apache.parquet",
}
# A report is a page of its own with inline scripts; whatever it holds, it may ask nobody for more.
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "font-src data:; sandbox allow-scripts"
)

_INDEX_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_BEARER = HTTPBearer(
    auto_error=False,
    description="The token that the service was started with; browsers send it as the password of "
    "any user (Basic)",
)
_PROBLEM: dict[str, Any] = {"content": {"application/json": {"schema": {"type": "object"}}}}

Name = Annotated[str, Path(description="Name of the artifact")]
Version = Annotated[str, Path(description="Number or alias of the version, e.g. 7 or latest")]
Node = Annotated[str, Path(description="Id of the node: level:index")]


class _Unauthorised(Exception):
    """A request without the token."""


class _Door:
    """Answers only to the names that the service was told, and HEAD like GET without the body.

    The port is not compared: it may be another one behind a tunnel or in a container, and a page of
    another site always comes under that site's name.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET", _HEAD: True}, _bodiless(send)
        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if self._hosts is None or self._knows(named):
            await self._app(scope, receive, send)
            return
        shown = named[0][:80] if named else ""
        detail = (
            f"host {shown!r} is not served here: use {', '.join(sorted(self._hosts))}, or start "
            "the service with --allowed-host."
        )
        await JSONResponse({"detail": detail}, 421)(scope, receive, send)

    def _knows(self, named: list[str]) -> bool:
        found = _HOST.fullmatch(named[0].lower()) if len(named) == 1 else None
        return found is not None and self._hosts is not None and found[1] in self._hosts


def _bodiless(send: Send) -> Send:
    async def heads_only(message: Message) -> None:
        await send({**message, "body": b""} if "body" in message else message)

    return heads_only


class _Bytes(StoredObject):
    """A body that was made here."""

    def __init__(self, data: bytes) -> None:
        self.where, self.size, self.version = "", len(data), None
        self._data = data

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        yield self._data[start:stop]

    def close(self) -> None:
        return


class _Body(StreamingResponse):
    """A part of an object, sent in small pieces; the object is closed whatever happens."""

    def __init__(self, source: StoredObject, part: range, **options: Any) -> None:
        super().__init__(self._pieces(source, part), **options)
        self._source = source

    @staticmethod
    async def _pieces(source: StoredObject, part: range) -> AsyncIterator[bytes]:
        blocks = source.blocks(part.start, part.stop)
        while (block := await run_in_threadpool(next, blocks, None)) is not None:
            for start in range(0, len(block), _PIECE):
                yield block[start : start + _PIECE]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._source.close()


def create_app(
    registry: Registry,
    *,
    token: str | None = None,
    hosts: Collection[str] | None = LOOPBACK_NAMES,
) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    registry : Registry
        What is served.
    token : str, optional
        The bearer token that every request must carry; without one none is asked for.
    hosts : collection of str, optional
        The names, without ports, by which clients reach the service; a request to another is
        answered with 421. None is for a service that must not know its names, and that has a token.
    """
    app = FastAPI(
        title="Strata artifacts",
        description="Published concept hierarchies, read-only.",
        dependencies=[Depends(_authorisation(token))],
        responses={
            401: {"description": "The token is missing or wrong", **_PROBLEM},
            421: {"description": "The service does not go by the name asked for", **_PROBLEM},
            416: {"description": "The range lies outside", **_PROBLEM},
            502: {"description": "What is stored is damaged or out of reach", **_PROBLEM},
            404: {"description": "There is no such artifact, version, file or node", **_PROBLEM},
            422: {"description": "A name or a parameter is not valid", **_PROBLEM},
        },
        # The pages of the documentation load scripts from elsewhere; the schema itself is served.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_middleware(_Door, hosts=hosts)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)

    @app.get("/openapi.json", include_in_schema=False)
    def schema() -> dict[str, Any]:
        return app.openapi()

    opened = _OpenArtifacts(registry)
    _serve_registry(app, registry)
    _serve_versions(app, opened)
    _serve_pages(app, registry, opened)
    _serve_nodes(app, opened)
    return app


def _authorisation(token: str | None) -> Callable[..., None]:
    """A dependency of every route that asks for the token, if there is one."""

    def authorise(
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        if token is None:
            return
        header = request.headers.get("authorization", "")
        offered = bearer.credentials if bearer is not None else _password(header)
        if not hmac.compare_digest(offered.encode(), token.encode()):
            raise _Unauthorised

    return authorise


def _problem(detail: str, status: int, **more: Any) -> JSONResponse:
    return JSONResponse({"detail": detail, **more}, status)


def _unauthorised(_: Request, __: Exception) -> JSONResponse:
    answer = _problem("a valid token is needed", 401)
    # One header for each scheme: browsers that find both in one ask for no password.
    answer.headers.append("WWW-Authenticate", "Bearer")
    answer.headers.append("WWW-Authenticate", 'Basic realm="strata"')
    return answer


def _out_of_reach(_: Request, error: Exception) -> JSONResponse:
    reason = without_secrets(str(error)).partition("\n")[0]
    return _problem(f"the store cannot be read: {reason}", 502)


def _unknown(_: Request, error: Exception) -> JSONResponse:
    return _problem(str(error), 404)


def _untrusted(_: Request, error: Exception) -> JSONResponse:
    return _problem(str(error), 502)


def _corrupt(_: Request, error: CorruptArtifact) -> JSONResponse:
    return _problem(str(error), 502, files=list(error.files))


def _malformed(_: Request, error: ValidationError) -> JSONResponse:
    # What a client sends is checked before; this is something that was stored.
    return _problem(f"a stored record is not valid: {first_reason(error)}", 502)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    return _problem(str(error), 422)


_HANDLERS: dict[type[Exception], Callable[[Request, Any], JSONResponse]] = {
    _Unauthorised: _unauthorised,
    OSError: _out_of_reach,
    BaseError: _out_of_reach,
    UnknownArtifact: _unknown,
    BadSignature: _untrusted,
    CorruptArtifact: _corrupt,
    ValidationError: _malformed,
    ValueError: _invalid,
}


class _OpenArtifacts:
    """The versions that were asked for last, and the pages made of them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._hashers = Semaphore(_HASHERS)
        self.drawers = Semaphore(_DRAWERS)
        self._opened = lru_cache(maxsize=_OPEN_ARTIFACTS)(self._open)
        self._recently = lru_cache(maxsize=_OPEN_ARTIFACTS)(self._resolve)
        self.rendered = lru_cache(maxsize=_RENDERED_PAGES)(self._render)
        self.manifest_bytes = lru_cache(maxsize=_OPEN_ARTIFACTS)(self._manifest)

    def find(self, name: str, version: str) -> tuple[Artifact, bool]:
        """The artifact, and whether it was named by its number and so will never be another."""
        fixed = version.removeprefix("v").isdigit()
        if fixed:
            # A number means the same for ever, unless its version is removed: one look a second at
            # the registry finds that out soon enough.
            number = self._recently(name, version, int(time.monotonic()))
            return self._opened(name, number), True
        return self._opened(name, self._registry.resolve(name, version).version), False

    async def answer_file(self, request: Request, name: str, version: str, path: str) -> Response:
        """The answer with a file of a version."""
        artifact, fixed = await run_in_threadpool(self.find, name, version)
        # Only what the manifest lists is ever opened, so that no path leads out of the version.
        entry = artifact.manifest.files.get(path)
        if entry is None:
            raise HTTPException(404, f"{name} version {artifact.version} has no such file")
        media_type = _MEDIA_TYPES.get(path.rsplit(".", 1)[-1], "application/octet-stream")
        headers = _headers(entry.sha256, fixed=fixed, media_type=media_type, policy=_REPORT_POLICY)
        part = _asked(request, entry.bytes, headers)
        if isinstance(part, Response):
            return part
        async with self._hashers:
            source = await run_in_threadpool(artifact.open, path)
        status = 206 if "Content-Range" in headers else 200
        return _Body(source, part, status_code=status, headers=headers)

    def _open(self, name: str, version: int) -> Artifact:
        return self._registry.load(name, version, verify=False)

    def _resolve(self, name: str, version: str, _second: int) -> int:
        return self._registry.resolve(name, version).version

    def _render(self, name: str, version: int) -> bytes:
        from storage.atlas import render
        from storage.atlas.published import published_atlas

        return render(published_atlas(self._opened(name, version))).encode()

    def _manifest(self, name: str, version: int) -> bytes:
        return self._opened(name, version).manifest.to_bytes()


def _serve_registry(app: FastAPI, registry: Registry) -> None:
    """What there is, for programs."""

    @app.get("/artifacts", response_model=list[str])
    def names(request: Request) -> Response:
        """Names of all artifacts."""
        return _answer_json(request, registry.names())

    @app.get("/artifacts/{name}/versions", response_model=list[ArtifactReference])
    def versions(request: Request, name: Name) -> Response:
        """References of all versions, oldest first."""
        found = [reference.model_dump(mode="json") for reference in registry.versions(name)]
        return _answer_json(request, found)

    @app.get("/artifacts/{name}/aliases", response_model=dict[str, int])
    def aliases(request: Request, name: Name) -> Response:
        """Where every alias points."""
        return _answer_json(request, registry.aliases(name))


def _serve_versions(app: FastAPI, opened: _OpenArtifacts) -> None:
    """The manifest and the files of a version."""

    @app.get("/artifacts/{name}/versions/{version}", response_model=Manifest)
    def manifest(request: Request, name: Name, version: Version) -> Response:
        """The manifest of a version."""
        artifact, fixed = opened.find(name, version)
        body = opened.manifest_bytes(name, artifact.version)
        return _answer(request, body, "application/json", fixed=fixed)

    @app.get("/artifacts/{name}/versions/{version}/files/{path:path}", response_class=Response)
    async def file(request: Request, name: Name, version: Version, path: str) -> Response:
        """One file of a version, verified; a part of it, if asked for by `Range`."""
        return await opened.answer_file(request, name, version, path)

    @app.get("/artifacts/{name}/versions/{version}/report", response_class=Response)
    async def report(request: Request, name: Name, version: Version) -> Response:
        """The report of a version, a page for the browser."""
        return await opened.answer_file(request, name, version, REPORT_FILE)


def _serve_pages(app: FastAPI, registry: Registry, opened: _OpenArtifacts) -> None:
    """Pages for the browser."""

    @app.get("/", response_class=HTMLResponse)
    def index(request: Request) -> Response:
        """All artifacts and their versions, a page for the browser."""
        found: dict[str, tuple[list[ArtifactReference], dict[str, int]] | str] = {}
        for name in registry.names():
            try:
                found[name] = (registry.versions(name), registry.aliases(name))
            except (ValueError, BadSignature, UnknownArtifact, OSError, BaseError) as error:
                found[name] = without_secrets(first_reason(error))
        body = index_page(found)
        return _answer(request, body, _MEDIA_TYPES["html"], fixed=False, policy=_INDEX_POLICY)

    @app.get("/artifacts/{name}/{version}/", response_class=HTMLResponse)
    async def atlas(request: Request, name: Name, version: Version) -> Response:
        """The atlas of a version, a page for the browser."""
        artifact, fixed = await run_in_threadpool(opened.find, name, version)
        if REPORT_FILE in artifact.manifest.files:
            return await opened.answer_file(request, name, version, REPORT_FILE)
        if "graph/nodes.parquet" not in artifact.manifest.files:
            raise HTTPException(404, f"{name} version {artifact.version} has no page and no graph")
        async with opened.drawers:
            body = await run_in_threadpool(opened.rendered, name, artifact.version)
        return _answer(request, body, _MEDIA_TYPES["html"], fixed=fixed, policy=_REPORT_POLICY)


def _serve_nodes(app: FastAPI, opened: _OpenArtifacts) -> None:
    """What a concept graph tells of a node."""

    async def answer_node(
        request: Request, name: str, version: str, node: str, ask: Callable[[Artifact], Any]
    ) -> Response:
        async with opened.drawers:
            return await run_in_threadpool(answer, request, name, version, node, ask)

    def answer(
        request: Request, name: str, version: str, node: str, ask: Callable[[Artifact], Any]
    ) -> Response:
        artifact, fixed = opened.find(name, version)
        if "graph/nodes.parquet" not in artifact.files or node not in artifact.graph:
            raise HTTPException(404, f"{name} version {artifact.version} has no node {node!r}")
        body = canonical_json(ask(artifact))
        if len(body) > _MOST_JSON:
            raise HTTPException(
                422,
                f"the answer has {len(body):,} bytes, which is more than {_MOST_JSON:,}: ask for "
                "less depth, or read graph/edges.parquet.",
            )
        return _answer(request, body, "application/json", fixed=fixed)

    @app.get("/artifacts/{name}/versions/{version}/nodes/{node}")
    async def node(request: Request, name: Name, version: Version, node: Node) -> Response:
        """One node of the concept graph with its direct parts and wholes."""

        def ask(artifact: Artifact) -> dict[str, Any]:
            graph = artifact.graph
            around = {"parents": graph.edges_into(node), "children": graph.edges_from(node)}
            return {"node": graph.node(node), **around}

        return await answer_node(request, name, version, node, ask)

    @app.get("/artifacts/{name}/versions/{version}/nodes/{node}/ancestors")
    async def ancestors(request: Request, name: Name, version: Version, node: Node) -> Response:
        """Ids of all parts of a node, at any depth."""
        return await answer_node(request, name, version, node, lambda a: a.graph.ancestors(node))

    @app.get("/artifacts/{name}/versions/{version}/nodes/{node}/descendants")
    async def descendants(request: Request, name: Name, version: Version, node: Node) -> Response:
        """Ids of all wholes that a node takes part in."""
        return await answer_node(request, name, version, node, lambda a: a.graph.descendants(node))

    @app.get("/artifacts/{name}/versions/{version}/nodes/{node}/neighbourhood")
    async def neighbourhood(
        request: Request,
        name: Name,
        version: Version,
        node: Node,
        depth: Annotated[int, Query(ge=1, le=8)] = 1,
    ) -> Response:
        """The graph around a node, as node-link data."""

        def ask(artifact: Artifact) -> dict[str, Any]:
            return artifact.graph.neighbourhood(node, depth=depth).to_node_link()

        return await answer_node(request, name, version, node, ask)


def serve(
    url: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8420,
    token: str | None = None,
    allowed_hosts: Collection[str] = (),
) -> None:
    """Serve a registry until interrupted.

    Parameters
    ----------
    url : str
        URL of the registry.
    host, port : str, int
        Where to listen; beyond this machine only with a token.
    token : str, optional
        The bearer token; by default that of the environment, ``STRATA_TOKEN``.
    allowed_hosts : collection of str
        Further names, without ports, by which clients reach the service, such as that of a proxy
        in front of it. A service that listens beyond this machine answers to every name if none is
        given: its token is what keeps strangers out.

    Raises
    ------
    ValueError
        If the host is not this machine and there is no token, or an allowed host has a port.
    """
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if host not in _LOOPBACK and token is None:
        raise ValueError(
            f"host {host!r} is reachable from elsewhere: set {TOKEN_VARIABLE}, or listen on "
            "127.0.0.1."
        )
    for name in allowed_hosts:
        found = _HOST.fullmatch(name.lower())
        if found is None or found[2]:
            raise ValueError(
                f"allowed host {name!r} is not a host's name: give it without scheme, port or path."
            )
    answers_to_all = host not in _LOOPBACK and not allowed_hosts
    hosts = None if answers_to_all else (*LOOPBACK_NAMES, *allowed_hosts)
    import uvicorn

    from storage.connections import BoundedConnection

    config = uvicorn.Config(
        create_app(Registry(url), token=token, hosts=hosts),
        host=host,
        port=port,
        log_level="warning",
        http=BoundedConnection,
        ws="none",
        h11_max_incomplete_event_size=_MAX_HEADERS,
        server_header=False,
        proxy_headers=False,
    )
    uvicorn.Server(config).run()


def _answer(
    request: Request,
    body: bytes,
    media_type: str,
    *,
    fixed: bool,
    policy: str | None = None,
) -> Response:
    headers = _headers(digest(body), fixed=fixed, media_type=media_type, policy=policy)
    part = _asked(request, len(body), headers)
    if isinstance(part, Response):
        return part
    status = 206 if "Content-Range" in headers else 200
    if len(body) <= _PIECE:
        return Response(body[part.start : part.stop], status, headers)
    return _Body(_Bytes(body), part, status_code=status, headers=headers)


def _answer_json(request: Request, value: Any) -> Response:
    return _answer(request, canonical_json(value), "application/json", fixed=False)


def _headers(sha256: str, *, fixed: bool, media_type: str, policy: str | None) -> dict[str, str]:
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": _FOREVER if fixed else _REVALIDATE,
        "Content-Type": media_type,
        "ETag": f'"{sha256}"',
        "X-Content-Type-Options": "nosniff",
    }
    if policy is not None:
        headers["Content-Security-Policy"] = policy
    return headers


def _asked(request: Request, size: int, headers: dict[str, str]) -> range | Response:
    """Which bytes to send under these headers; or the whole answer, where none are to be sent."""
    tag = headers["ETag"]
    if _matches(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    if request.scope.get(_HEAD):
        return Response(status_code=200, headers=headers | {"Content-Length": str(size)})
    part = None
    # A part of another version than the client has would be worth nothing to it.
    if request.headers.get("if-range", tag) == tag:
        part = _part(request.headers.get("range", ""), size)
    if part is None:
        headers["Content-Length"] = str(size)
        return range(size)
    if not part:
        detail = {"detail": f"the range lies outside of the {size:,} bytes"}
        return JSONResponse(detail, 416, {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    headers["Content-Length"] = str(len(part))
    return part


def _part(header: str, size: int) -> range | None:
    """The one range that is asked for, empty if it lies outside; None if none or several are."""
    found = _RANGE.fullmatch(header)
    if found is None:
        return None
    first, last = found.groups()
    if not first:
        return range(max(0, size - int(last)), size) if last else None
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


def _password(header: str) -> str:
    """The password of an ``Authorization: Basic`` header, or the empty string."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return b64decode(encoded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _matches(header: str, tag: str) -> bool:
    offered = [part.strip().removeprefix("W/") for part in header.split(",")]
    return tag in offered or "*" in offered
