"""``idiolect token``: a bearer token for a server, made without loading what serves."""

import json
import logging
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fl.serving.http.auth import add_token
from sim.cli.options import Json

logger = logging.getLogger(__name__)


def token(
    name: Annotated[str, Argument(help="Whose it is; in the file, not in logs.")],
    tokens: Annotated[Path, Option(help="Token file; made if not there.")] = Path("tokens.txt"),
    as_json: Json = False,
) -> None:
    """Make a bearer token: it is printed once, and the file gets its hash."""
    made = add_token(tokens, name)
    print(json.dumps({"name": name, "token": made, "file": str(tokens.resolve())}) if as_json else made)
    logger.info("added %s to %s", name, tokens)
