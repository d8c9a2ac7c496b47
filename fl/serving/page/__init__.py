"""The web page of the server: record or choose a sentence, see it transcribed by the base and with an adapter.

One file with its style and its script in it; knows this server's transcription route and loads nothing from elsewhere. Its
policy names style and script by their SHA-256, so that no other script runs, whatever a transcript may hold.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from string import Template

from fastapi import APIRouter, Response

from fl.speech.audio import MAX_SECONDS, MIN_SECONDS, SAMPLE_RATE, SILENCE_PEAK

SCRIPTS = ("sound.js", "compare.js", "request.js", "view.js", "fields.js", "speech.js", "page.js")
"""One function of the page holds them all, in this order."""

_LIMITS = {
    "sample-rate": SAMPLE_RATE,
    "max-seconds": MAX_SECONDS,
    "min-seconds": MIN_SECONDS,
    "silence-peak": SILENCE_PEAK,
}


@cache
def page() -> str:
    """The page as text: HTML that refers to nothing outside itself. Limits, style and script are put into ``page.html``."""
    limits = " ".join(f'data-{name}="{value:g}"' for name, value in _LIMITS.items())
    return Template(_read("page.html")).substitute(limits=limits, style=_read("page.css"), script=_script())


@cache
def policy() -> str:
    """The Content-Security-Policy. ``blob:`` scripts are the audio worklet, which a browser loads only by address."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_digest(_script())} blob:",
            f"style-src {_digest(_read('page.css'))}",
            "connect-src 'self'",
            "media-src blob:",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def headers() -> dict[str, str]:
    """What the page is sent with: it may use the microphone, and no other page may use it."""
    return {
        "Content-Security-Policy": policy(),
        "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }


router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
def show() -> Response:
    """The page, to anybody: it holds no secret, the token is asked for in it."""
    return Response(page(), headers=headers(), media_type="text/html; charset=utf-8")


@cache
def _script() -> str:
    return '"use strict";\n(() => {\n' + "\n".join(map(_read, SCRIPTS)) + "})();\n"


def _read(name: str) -> str:
    return files("fl.serving.page").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
