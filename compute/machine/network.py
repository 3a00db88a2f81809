"""Whether the Hugging Face Hub can be reached from this machine."""

from __future__ import annotations

import functools
import os
import socket
import sys
from urllib.parse import urlsplit

__all__ = ["cache_alone_without_hub"]

_ENDPOINT = "https://huggingface.co"
_CONNECT_SECONDS = 5.0
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


@functools.cache
def cache_alone_without_hub() -> None:
    """Try the hub once; if it does not answer, let its client look into its cache alone.

    The client would try again for half a minute, and again for each file. Processes that are
    begun later know, too. Behind a proxy nobody can tell, and nothing is changed.
    """
    if any(os.environ.get(name) for name in (*_PROXIES, "HF_HUB_OFFLINE")):
        return
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or _ENDPOINT)
    try:
        port = hub.port or (80 if hub.scheme == "http" else 443)
        socket.create_connection((hub.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError):
        os.environ["HF_HUB_OFFLINE"] = "1"
        # Read when the client was imported, which may have been before.
        constants = sys.modules.get("huggingface_hub.constants")
        if constants is not None:
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
