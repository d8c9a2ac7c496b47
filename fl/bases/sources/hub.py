"""Models of the Hugging Face Hub: its local cache first, then the network, briefly."""

import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from fl.core.errors import BaseModelError

FILES = ["config.json", "generation_config.json", "tokenizer_config.json"]
FILES += ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"]
WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
TIMEOUT_SECONDS = 10.0


def is_repository(name: str) -> bool:
    """Whether ``name`` has the form owner/model."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) is not None


def snapshot(name: str) -> Path:
    """The folder of ``name`` in the Hub's cache, downloaded if it is not there.

    Raises :class:`BaseModelError` that says where was looked and what to do.
    """
    try:
        cached = Path(snapshot_download(name, allow_patterns=FILES + WEIGHTS, local_files_only=True))
        if (cached / "config.json").exists() and list(cached.glob("*.safetensors")):
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=FILES + WEIGHTS, etag_timeout=TIMEOUT_SECONDS))
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"base {name!r}: the Hugging Face Hub has no such public model. Check the name."
        ) from error
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(
            f"base {name!r} not found: there is no such folder, it is not in the Hub's cache ({constants.HF_HUB_CACHE}), "
            f"and {constants.ENDPOINT} could not be reached ({reason}). Copy the model into a folder and give its path, "
            "download it on a machine with a network (`hf download`), or use a pinned base: whisper-base, whisper-tiny.en."
        ) from error
