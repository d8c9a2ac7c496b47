"""``idiolect serve``: its options, in the order in which people need them. What serves is loaded when it is run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from fl.serving.engine.settings import EngineSettings
from fl.serving.http.limits import MIB, ServerLimits
from sim.cli.options import with_fields

LIMITS = ServerLimits()
ADDRESS, MODEL, PROGRAMS, SIZES, BOUNDS = "Who may ask, and where", "Base", "Programs", "Memory and speed", "Limits"


@dataclass(frozen=True)
class ServeOptions:
    """What is served, to whom and within which limits."""

    tokens: Annotated[
        Path | None, Option(help="Token file; 'idiolect token NAME' adds to it.", rich_help_panel=ADDRESS)
    ] = None
    no_auth: Annotated[
        bool, Option("--no-auth", help="No tokens; only on a loopback address.", rich_help_panel=ADDRESS)
    ] = False
    host: Annotated[str, Option(help="Address to listen at.", rich_help_panel=ADDRESS)] = "127.0.0.1"
    port: Annotated[int, Option(help="Port; 0 takes a free one.", rich_help_panel=ADDRESS)] = 8000
    tls_cert: Annotated[Path | None, Option(help="PEM certificate chain.", rich_help_panel=ADDRESS)] = None
    tls_key: Annotated[Path | None, Option(help="PEM private key.", rich_help_panel=ADDRESS)] = None
    base: Annotated[str, Option(help="A name, directory or Hub name.", rich_help_panel=MODEL)] = "whisper-base"
    correction: Annotated[
        Path | None, Option(help="File in RUN/corrections (flora, fedex).", rich_help_panel=MODEL)
    ] = None
    shared: Annotated[
        Path | None, Option(help="RUN/shared: enrolments draw on its directions.", rich_help_panel=MODEL)
    ] = None
    compute: Annotated[str, Option(help="auto, cpu or cuda.", rich_help_panel=MODEL)] = "auto"
    precision: Annotated[str, Option(help="auto, float32 or bf16.", rich_help_panel=MODEL)] = "auto"
    languages: Annotated[str, Option(help="To detect among: ko,en; empty: all.", rich_help_panel=MODEL)] = ""
    adapt: Annotated[bool, Option(help="Whether devices may train here.", rich_help_panel=MODEL)] = True
    alias: Annotated[
        list[str] | None,
        Option(metavar="NAME=BASE", help="Another name of the base. Repeatable.", rich_help_panel=PROGRAMS),
    ] = None
    any_model: Annotated[
        bool, Option("--any-model", help="Accept whatever model a program names.", rich_help_panel=PROGRAMS)
    ] = False
    cors_origin: Annotated[
        list[str] | None,
        Option(help="Origin whose pages may ask. Repeatable.", rich_help_panel=PROGRAMS),
    ] = None
    rows: Annotated[int, Option(help="Requests decoded at once.", min=1, rich_help_panel=SIZES)] = EngineSettings.rows
    waiting: Annotated[int, Option(help="Requests in the queue.", min=1, rich_help_panel=SIZES)] = (
        EngineSettings.waiting
    )
    table_mib: Annotated[int, Option(help="For adapters; 0: as the base.", min=0, rich_help_panel=SIZES)] = 0
    handle_mib: Annotated[int, Option(help="For adapters behind handles.", min=1, rich_help_panel=SIZES)] = (
        LIMITS.handle_bytes // MIB
    )
    handle_seconds: Annotated[float, Option(help="An unused handle stays.", rich_help_panel=SIZES)] = (
        LIMITS.handle_seconds
    )
    max_body_mib: Annotated[int, Option(help="Body of a request.", min=1, rich_help_panel=BOUNDS)] = (
        LIMITS.max_body_bytes // MIB
    )
    max_audio_seconds: Annotated[float, Option(help="Audio of a request.", rich_help_panel=BOUNDS)] = (
        LIMITS.max_audio_seconds
    )
    request_seconds: Annotated[float, Option(help="Deadline of a request.", rich_help_panel=BOUNDS)] = (
        LIMITS.request_seconds
    )
    open_requests: Annotated[int, Option(help="Requests open at once.", min=1, rich_help_panel=BOUNDS)] = (
        LIMITS.max_open_requests
    )
    connections_per_address: Annotated[int, Option(help="Except from this machine.", min=1, rich_help_panel=BOUNDS)] = (
        LIMITS.connections_per_address
    )
    token_share: Annotated[float, Option(help="Of all open, for one token.", max=1, rich_help_panel=BOUNDS)] = (
        LIMITS.token_share
    )
    requests_per_minute: Annotated[float, Option(help="Of a token; 0: no limit.", rich_help_panel=BOUNDS)] = (
        LIMITS.requests_per_minute
    )
    audio_per_minute: Annotated[float, Option(help="Seconds of a token; 0: any.", rich_help_panel=BOUNDS)] = (
        LIMITS.audio_seconds_per_minute
    )

    def limits(self) -> ServerLimits:
        """The limits of the server."""
        return ServerLimits(
            max_body_bytes=self.max_body_mib * MIB,
            max_audio_seconds=self.max_audio_seconds,
            request_seconds=self.request_seconds,
            max_open_requests=self.open_requests,
            connections_per_address=self.connections_per_address,
            token_share=self.token_share,
            requests_per_minute=self.requests_per_minute,
            audio_seconds_per_minute=self.audio_per_minute,
            handle_bytes=self.handle_mib * MIB,
            handle_seconds=self.handle_seconds,
        )


@with_fields
def serve(options: ServeOptions) -> None:
    """Serve one frozen base to many people, each with an adapter of their own: OpenAI's transcription API and a web page.

    It needs [bold]--tokens[/bold] FILE, or [bold]--no-auth[/bold] on a loopback address. See docs/serving.md.
    """
    from sim.cli.serve import run_server  # torch

    run_server(options)
