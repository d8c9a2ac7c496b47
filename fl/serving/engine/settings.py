"""What an engine may be set to. Needs no torch, so that the command's help is quick."""

from dataclasses import dataclass

from fl.core.errors import ConfigError

MAX_BYTES = 16 * 2**20  # of an adapter that a device brings


@dataclass(frozen=True)
class EngineSettings:
    """``rows``: decoded at once. ``waiting``: requests in the queue at most, ``waiting_each`` of one person. ``frames``: mel
    frames (100 a second) that one turn encodes at most, so that rows which are being decoded never wait long; one request
    is always taken. ``languages``: what a request without a language may be in; empty for all that the base knows.
    ``table_bytes``: memory for the adapters of all rows, which grows with their largest rank; 0 for as much as the base has,
    at least 256 MiB. An adapter that needs more alone is refused; one that needs more beside others waits for them."""

    rows: int = 16
    waiting: int = 256
    waiting_each: int = 64
    frames: int = 6_000
    languages: tuple[str, ...] = ()
    table_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "waiting", "waiting_each", "frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} of the engine: at least 1")
