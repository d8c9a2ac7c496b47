"""Where Idiolect keeps what it can make again: converted bases and features."""

import os
from pathlib import Path


def cache_root() -> Path:
    """``$IDIOLECT_HOME`` where it is set, else ``~/.cache/idiolect``. The folder is not created here."""
    home = os.environ.get("IDIOLECT_HOME")
    return Path(home).expanduser() if home else Path.home() / ".cache" / "idiolect"
