"""Where notes, logs and secrets of this user's commands are kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["default_home"]


def default_home() -> Path:
    """The folder of all that is kept: ``STRATA_HOME``, or the user's state folder."""
    if home := os.environ.get("STRATA_HOME"):
        return Path(home).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "strata"
