"""The folder of a run: whose settings it holds, and when it is free for others."""

import errno
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl.core.compute import AUTO, BF16, bf16_pays, choose_device, choose_precision
from fl.core.errors import ConfigError, RunError
from fl.core.files import write_atomically
from fl.core.paths import cache_root
from fl.runs.schema import CONFIG_NAME, PROGRESS_NAME, TOKEN_NAME
from fl.settings.config import RunConfig, dump_config, flat, load_config

log = logging.getLogger("idiolect.server")


def run_folder(config: RunConfig, run_id: int) -> RunConfig:
    """The configuration with its output folder made and absolute, and the precision that ``auto`` stands for: what this machine is
    fast in, or what a resumed run began with. A folder of another configuration is refused, and the one in which the manifest lies."""
    folder = Path(config.output).expanduser().resolve() if config.output else cache_root() / "runs" / str(run_id)
    config = config.changed({"output": str(folder)})
    path = folder / CONFIG_NAME
    try:
        resumed = load_config(path) if path.exists() else None
    except ConfigError as error:  # a setting that is gone, say
        raise RunError(
            f"{folder} holds a run of another version or settings that were changed by hand ({error}): give another output, or "
            "remove the folder"
        ) from error
    asked = config.base.precision if resumed is None or config.base.precision != AUTO else resumed.base.precision
    device = choose_device(config.base.compute)
    config = config.changed({"base.precision": choose_precision(asked, device)})
    if config.base.precision == BF16 and not bf16_pays(device):
        log.warning("precision = 'bf16' is slow here: float32 is faster without AMX tiles or a GPU that has bf16")
    if resumed is not None:
        before, now = flat(resumed), flat(config)
        changed = sorted(key for key in now if before[key] != now[key])
        if changed:
            listed = ", ".join(f"{k} was {before[k]!r}, is {now[k]!r}" for k in changed[:4])
            raise RunError(
                f"{folder} holds a run with other settings ({listed}): give another output, or remove the folder"
            )
    elif config.data.manifest and folder == Path(config.data.manifest).expanduser().resolve().parent:
        raise RunError(f"{folder} holds the manifest, and a run's folder may have to be removed: give another output")
    else:
        try:
            write_atomically(path, dump_config(config).encode())
        except OSError as error:
            full = ", or free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise RunError(f"{folder} cannot be written ({error.strerror}): give another output{full}") from error
    return config


def run_token(folder: Path) -> str:
    """What deployed devices keep this run's private state under, 32 hexadecimal digits: of a resumed run the same, of every other
    run another one that nobody can guess."""
    path = folder / TOKEN_NAME
    if not path.exists():
        write_atomically(path, secrets.token_hex(16).encode())
    return path.read_text(encoding="utf-8")


@contextmanager
def freed_if_empty(folder: Path) -> Iterator[None]:
    """While a run may still be refused: ended by an error, a folder with nothing but settings in it forgets them.

    Otherwise a base whose name was mistyped would have to be given again, or the folder be removed, though nothing is in it.
    """
    try:
        yield
    except BaseException:
        if {entry.name for entry in folder.iterdir()} <= {CONFIG_NAME, PROGRESS_NAME}:
            for name in (CONFIG_NAME, PROGRESS_NAME):
                (folder / name).unlink(missing_ok=True)
        raise
