"""Health of the container's role: exit code 0 if what it should answer answers.

`STRATA_HEALTH_URL` names what to ask; without it the container is healthy while its main process
lives, which the container engine sees by itself.
"""

import os
import sys
import urllib.request

TIMEOUT_SECONDS = 5


def main() -> int:
    """Ask, and return the exit code."""
    url = os.environ.get("STRATA_HEALTH_URL", "")
    if not url:
        return 0
    if not url.startswith(("http://", "https://")):
        sys.stderr.write(f"STRATA_HEALTH_URL {url!r} is no http address: give one.\n")
        return 1
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            return 0 if answer.status == 200 else 1
    except OSError as error:
        sys.stderr.write(f"{url}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
