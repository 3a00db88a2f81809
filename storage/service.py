"""A small read-only HTTP service over a registry.

Everything that it serves under a version's number is immutable and carries a strong ETag, so that a
client asks once; what an alias names may change and is revalidated. It listens on this machine
alone unless told otherwise, and asks for a token if one is set (``STRATA_TOKEN``): programs send it
as a bearer token, browsers as the password of any user. ``/`` lists all versions for people, and
``/artifacts/NAME/VERSION/`` shows the atlas of one.
"""

from __future__ import annotations

import hmac
import os
import time
from base64 import b64decode
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import (
    HTTPAuthorizationCredentials,
    HTTPBearer,
)

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
from storage.records import canonical_json, digest
from storage.registry.versions import REPORT_FILE

__all__ = ["create_app", "serve"]

TOKEN_VARIABLE = "STRATA_TOKEN"  # noqa: S105 - the name of the variable, not the token
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
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


def create_app(registry: Registry, *, token: str | None = None) -> FastAPI:
    """Return the application.

    Parameters
    ----------
    registry : Registry
        What is served.
    token : str, optional
        The bearer token that every request must carry; without one none is asked for.
    """

    def authorise(
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        if token is None:
            return
        header = request.headers.get("authorization", "")
        offered = bearer.credentials if bearer is not None else _password(header)
        if not hmac.compare_digest(offered.encode(), token.encode()):
            raise HTTPException(
                401, "a valid token is needed", {"WWW-Authenticate": 'Bearer, Basic realm="strata"'}
            )

    app = FastAPI(
        title="Strata artifacts",
        description="Published concept hierarchies, read-only.",
        dependencies=[Depends(authorise)],
        responses={
            401: {"description": "The token is missing or wrong", **_PROBLEM},
            404: {"description": "There is no such artifact, version, file or node", **_PROBLEM},
            422: {"description": "A name or a parameter is not valid", **_PROBLEM},
        },
        # The pages of the documentation load scripts from elsewhere; the schema itself is served.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )

    @app.get("/openapi.json", include_in_schema=False)
    def schema() -> dict[str, Any]:
        return app.openapi()

    @app.exception_handler(UnknownArtifact)
    def unknown(_: Request, error: UnknownArtifact) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(BadSignature)
    def untrusted(_: Request, error: BadSignature) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 502)

    @app.exception_handler(CorruptArtifact)
    def corrupt(_: Request, error: CorruptArtifact) -> JSONResponse:
        return JSONResponse({"detail": str(error), "files": list(error.files)}, 502)

    @app.exception_handler(ValueError)
    def invalid(_: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @lru_cache(maxsize=_OPEN_ARTIFACTS)
    def opened(name: str, version: int) -> Artifact:
        return registry.load(name, version, verify=False)

    @lru_cache(maxsize=_OPEN_ARTIFACTS)
    def recently(name: str, version: str, _second: int) -> int:
        # A number means the same for ever, unless its version is removed: one look a second at the
        # registry finds that out soon enough.
        return registry.resolve(name, version).version

    def find(name: str, version: str) -> tuple[Artifact, bool]:
        """The artifact, and whether it was named by its number and so will never be another."""
        fixed = version.removeprefix("v").isdigit()
        if fixed:
            return opened(name, recently(name, version, int(time.monotonic()))), True
        return opened(name, registry.resolve(name, version).version), False

    @lru_cache(maxsize=_RENDERED_PAGES)
    def rendered(name: str, version: int) -> bytes:
        from storage.atlas import render
        from storage.atlas.published import published_atlas

        return render(published_atlas(opened(name, version))).encode()

    def answer(
        request: Request,
        data: Callable[[], bytes],
        media_type: str,
        *,
        fixed: bool,
        sha256: str | None = None,
        policy: str | None = None,
    ) -> Response:
        """An answer with its ETag; what the client has already, by its digest, is not read."""
        body = data() if sha256 is None else None
        tag = f'"{sha256 if body is None else digest(body)}"'
        headers = {
            "ETag": tag,
            "Cache-Control": _FOREVER if fixed else _REVALIDATE,
            "X-Content-Type-Options": "nosniff",
        }
        if policy is not None:
            headers["Content-Security-Policy"] = policy
        if _matches(request.headers.get("if-none-match", ""), tag):
            return Response(status_code=304, headers=headers)
        content = data() if body is None else body
        return Response(content, media_type=media_type, headers=headers)

    def answer_json(request: Request, value: Any, *, fixed: bool) -> Response:
        return answer(request, lambda: canonical_json(value), "application/json", fixed=fixed)

    def node_answer(
        request: Request, name: str, version: str, node: str, ask: Callable[[Artifact], Any]
    ) -> Response:
        artifact, fixed = find(name, version)
        if "graph/nodes.parquet" not in artifact.files or node not in artifact.graph:
            raise HTTPException(404, f"{name} version {artifact.version} has no node {node!r}")
        return answer_json(request, ask(artifact), fixed=fixed)

    @app.get("/artifacts", response_model=list[str])
    def names(request: Request) -> Response:
        """Names of all artifacts."""
        return answer_json(request, registry.names(), fixed=False)

    @app.get("/artifacts/{name}/versions", response_model=list[ArtifactReference])
    def versions(request: Request, name: Name) -> Response:
        """References of all versions, oldest first."""
        found = [reference.model_dump(mode="json") for reference in registry.versions(name)]
        return answer_json(request, found, fixed=False)

    @app.get("/artifacts/{name}/aliases", response_model=dict[str, int])
    def aliases(request: Request, name: Name) -> Response:
        """Where every alias points."""
        return answer_json(request, registry.aliases(name), fixed=False)

    @app.get("/artifacts/{name}/versions/{version}", response_model=Manifest)
    def manifest(request: Request, name: Name, version: Version) -> Response:
        """The manifest of a version."""
        artifact, fixed = find(name, version)
        return answer(request, artifact.manifest.to_bytes, "application/json", fixed=fixed)

    @app.get("/artifacts/{name}/versions/{version}/files/{path:path}", response_class=Response)
    def file(request: Request, name: Name, version: Version, path: str) -> Response:
        """One file of a version, verified."""
        artifact, fixed = find(name, version)
        # Only what the manifest lists is ever opened, so that no path leads out of the version.
        if path not in artifact.manifest.files:
            raise HTTPException(404, f"{name} version {artifact.version} has no such file")
        suffix = path.rsplit(".", 1)[-1]
        media_type = _MEDIA_TYPES.get(suffix, "application/octet-stream")
        return answer(
            request,
            lambda: artifact.read(path),
            media_type,
            fixed=fixed,
            sha256=artifact.manifest.files[path].sha256,
            policy=_REPORT_POLICY,
        )

    @app.get("/artifacts/{name}/versions/{version}/report", response_class=Response)
    def report(request: Request, name: Name, version: Version) -> Response:
        """The report of a version, a page for the browser."""
        return file(request, name, version, REPORT_FILE)

    @app.get("/", response_class=HTMLResponse)
    def index(request: Request) -> Response:
        """All artifacts and their versions, a page for the browser."""
        found = {
            name: (registry.versions(name), registry.aliases(name)) for name in registry.names()
        }
        return answer(
            request,
            lambda: index_page(found),
            _MEDIA_TYPES["html"],
            fixed=False,
            policy=_INDEX_POLICY,
        )

    @app.get("/artifacts/{name}/{version}/", response_class=HTMLResponse)
    def atlas(request: Request, name: Name, version: Version) -> Response:
        """The atlas of a version, a page for the browser."""
        artifact, fixed = find(name, version)
        if REPORT_FILE in artifact.manifest.files:
            return file(request, name, version, REPORT_FILE)
        if "graph/nodes.parquet" not in artifact.manifest.files:
            raise HTTPException(404, f"{name} version {artifact.version} has no page and no graph")
        return answer(
            request,
            lambda: rendered(name, artifact.version),
            _MEDIA_TYPES["html"],
            fixed=fixed,
            policy=_REPORT_POLICY,
        )

    @app.get("/artifacts/{name}/versions/{version}/nodes/{node}")
    def node(request: Request, name: Name, version: Version, node: Node) -> Response:
        """One node of the concept graph with its direct parts and wholes."""
        return node_answer(
            request,
            name,
            version,
            node,
            lambda artifact: {
                "node": artifact.graph.node(node),
                "parents": artifact.graph.edges_into(node),
                "children": artifact.graph.edges_from(node),
            },
        )

    @app.get("/artifacts/{name}/versions/{version}/nodes/{node}/ancestors")
    def ancestors(request: Request, name: Name, version: Version, node: Node) -> Response:
        """Ids of all parts of a node, at any depth."""
        return node_answer(request, name, version, node, lambda a: a.graph.ancestors(node))

    @app.get("/artifacts/{name}/versions/{version}/nodes/{node}/descendants")
    def descendants(request: Request, name: Name, version: Version, node: Node) -> Response:
        """Ids of all wholes that a node takes part in."""
        return node_answer(request, name, version, node, lambda a: a.graph.descendants(node))

    @app.get("/artifacts/{name}/versions/{version}/nodes/{node}/neighbourhood")
    def neighbourhood(
        request: Request,
        name: Name,
        version: Version,
        node: Node,
        depth: Annotated[int, Query(ge=1, le=8)] = 1,
    ) -> Response:
        """The graph around a node, as node-link data."""
        return node_answer(
            request,
            name,
            version,
            node,
            lambda a: a.graph.neighbourhood(node, depth=depth).to_node_link(),
        )

    return app


def serve(url: str, *, host: str = "127.0.0.1", port: int = 8420, token: str | None = None) -> None:
    """Serve a registry until interrupted.

    Parameters
    ----------
    url : str
        URL of the registry.
    host, port : str, int
        Where to listen; beyond this machine only with a token.
    token : str, optional
        The bearer token; by default that of the environment, ``STRATA_TOKEN``.

    Raises
    ------
    ValueError
        If the host is not this machine and there is no token.
    """
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    if host not in _LOOPBACK and token is None:
        raise ValueError(
            f"host {host!r} is reachable from elsewhere: set {TOKEN_VARIABLE}, or listen on "
            "127.0.0.1."
        )
    import uvicorn

    uvicorn.run(create_app(Registry(url), token=token), host=host, port=port, log_level="warning")


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
