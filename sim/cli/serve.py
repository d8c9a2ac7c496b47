"""``idiolect serve``: the server with its engine, and the enrolments that it runs for devices."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, cast

from typer import Option

from clients.training.enrol import DEFAULT, Adapter
from clients.training.person import enrol_person
from fl.adapters.correction import load_correction
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.core.compute import choose_device, dtype_of
from fl.core.errors import AdapterError, ConfigError, SplitError
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.http.adapt import Adapt, AdaptJob, AdaptResult
from fl.serving.http.app import create_app
from fl.serving.http.auth import TokenFile
from fl.serving.http.limits import MIB, ServerLimits
from fl.serving.http.server import Address, make_server
from fl.speech.features import Window
from fl.speech.languages import language_code
from fl.tasks.speech.kind import SPEECH
from fl.tasks.speech.own import OwnSpeech

logger = logging.getLogger(__name__)


def enrolling(base: WhisperBase) -> Adapt:
    """Enrolment on modules of its own around the frozen ``base``: requests that are served meanwhile are not affected."""

    def adapt(job: AdaptJob) -> AdaptResult:
        adapter = job.adapter
        window = cast(Window, adapter.info.window)  # one of them: checked when the adapter was admitted
        utterances = [(str(number), audio, text) for number, (audio, text) in enumerate(job.utterances)]
        targets = adapter.info.config.target_modules or []
        speech = OwnSpeech(base, utterances, window=window, language=job.language, targets=targets, check=job.check)
        shared = Adapter(adapter.slot, adapter.tensors)
        try:
            found = enrol_person(speech, shared, DEFAULT, metric=SPEECH.main, seed=job.fields.seed)
        except SplitError as error:
            raise AdapterError(f"nothing of this adapter is trained by an enrolment: {error}") from None
        return AdaptResult(found.tensors, found.private, found.helps, found.report())

    return adapt


LIMITS = ServerLimits()


def serve(
    base: Annotated[str, Option(help="Base: a name of 'idiolect bases', a directory, a Hub name.")] = "whisper-base",
    correction: Annotated[
        Path | None, Option(help="Correction of flora or fedex: a file of the folder 'corrections' of a run.")
    ] = None,
    alias: Annotated[
        list[str] | None, Option(help="NAME=BASE, a name that programs call the base by; may be given several times.")
    ] = None,
    any_model: Annotated[bool, Option("--any-model", help="Serve the base whatever model a program names.")] = False,
    cors_origin: Annotated[
        list[str] | None,
        Option(help="Origin whose pages may use the server, such as app://obsidian.md; may be given several times."),
    ] = None,
    host: Annotated[str, Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, Option(help="Port; 0 takes a free one and prints it.")] = 8000,
    tokens: Annotated[Path | None, Option(help="Token file; 'idiolect token NAME --tokens FILE' adds to it.")] = None,
    no_auth: Annotated[bool, Option("--no-auth", help="No tokens; only on a loopback address.")] = False,
    tls_cert: Annotated[Path | None, Option(help="PEM certificate chain.")] = None,
    tls_key: Annotated[Path | None, Option(help="PEM private key.")] = None,
    compute: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, Option(help="auto, float32 or bf16, of the frozen weights and activations.")] = "auto",
    rows: Annotated[int, Option(help="Rows that are decoded at once.", min=1)] = EngineSettings.rows,
    waiting: Annotated[int, Option(help="Requests in the queue at most.", min=1)] = EngineSettings.waiting,
    table_mib: Annotated[int, Option(help="Memory for adapters of rows; 0: as much as the base has.", min=0)] = 0,
    languages: Annotated[str, Option(help="Languages to detect among, such as ko,en; empty: all.")] = "",
    adapt: Annotated[bool, Option(help="Whether devices may be enrolled here.")] = True,
    max_body_mib: Annotated[int, Option(help="Body of a request.", min=1)] = LIMITS.max_body_bytes // MIB,
    max_audio_seconds: Annotated[float, Option(help="Audio of a request.")] = LIMITS.max_audio_seconds,
    request_seconds: Annotated[float, Option(help="Deadline of a request.")] = LIMITS.request_seconds,
    open_requests: Annotated[int, Option(help="Requests that are open at once.", min=1)] = LIMITS.max_open_requests,
    connections_per_address: Annotated[
        int, Option(help="Connections from one address, but for this machine's own.", min=1)
    ] = LIMITS.connections_per_address,
    token_share: Annotated[
        float,
        Option(help="Of open requests, of their bytes and of training: the share that one token may have.", max=1),
    ] = LIMITS.token_share,
    requests_per_minute: Annotated[float, Option(help="Of one token; 0: no limit.")] = LIMITS.requests_per_minute,
    audio_per_minute: Annotated[
        float, Option(help="Seconds, of one token; 0: no limit.")
    ] = LIMITS.audio_seconds_per_minute,
    handle_mib: Annotated[int, Option(help="Memory for adapters behind handles.", min=1)] = LIMITS.handle_bytes // MIB,
    handle_seconds: Annotated[float, Option(help="How long an unused handle stays.")] = LIMITS.handle_seconds,
) -> None:
    """Serve one frozen base to many people, each with an adapter of their own: OpenAI's transcription API and a web page.

    It needs [bold]--tokens[/bold] FILE, or [bold]--no-auth[/bold] on a loopback address. See docs/serving.md.
    """
    address = Address(host, port, tls_cert, tls_key)
    limits = ServerLimits(
        max_body_bytes=max_body_mib * MIB,
        max_audio_seconds=max_audio_seconds,
        request_seconds=request_seconds,
        max_open_requests=open_requests,
        connections_per_address=connections_per_address,
        token_share=token_share,
        requests_per_minute=requests_per_minute,
        audio_seconds_per_minute=audio_per_minute,
        handle_bytes=handle_mib * MIB,
        handle_seconds=handle_seconds,
    )
    origins = origins_of(cors_origin or (), no_auth)
    known, aliases = choose_tokens(tokens, no_auth, address), names_of(base, alias or ())
    chosen = tuple(filter(None, map(language_code, languages.split(","))))
    device = choose_device(compute)
    loaded = load_base(base, dtype=dtype_of(precision, device)).to(device)
    if correction is not None:
        loaded = loaded.with_correction(load_correction(correction, loaded.fingerprint))
    for code in chosen:
        loaded.prefix_ids(code)
    engine = BatchEngine(loaded, EngineSettings(rows, waiting, languages=chosen, table_bytes=table_mib * MIB))
    try:
        app = create_app(
            engine,
            loaded,
            limits,
            tokens=known,
            adapt=enrolling(loaded) if adapt else None,
            aliases=aliases,
            any_model=any_model,
            origins=origins,
        )
        server = make_server(app, address, limits)
        for name in ("fl.serving.http.admission", "uvicorn.error"):  # one line for each request, and where it listens
            logging.getLogger(name).setLevel(logging.INFO)
        with suppress(KeyboardInterrupt):
            server.run()
    except SystemExit:  # uvicorn's way to say that it has logged why it could not start
        raise ConfigError(f"{host}:{port} cannot be listened at: is a server there? Choose another --port") from None
    finally:
        engine.close()


def names_of(base: str, aliases: Sequence[str]) -> list[str]:
    """The names in ``NAME=BASE``; :class:`ConfigError` where one stands for another base than the one that is served."""
    names = []
    for alias in aliases:
        name, _, target = map(str.strip, alias.partition("="))
        if not name or target != base:
            raise ConfigError(f"--alias {alias}: one base is served here, so give NAME={base}")
        names.append(name)
    return names


def origins_of(origins: Sequence[str], no_auth: bool) -> list[str]:
    """Origins as browsers send them; :class:`ConfigError` for what is none, and for ``null`` where no token protects the server."""
    found = [origin.strip().lower() for origin in origins]
    for origin in found:
        if origin == "null":
            if no_auth:
                raise ConfigError("--cors-origin null: any page can take that origin, so it needs --tokens FILE")
        elif not re.fullmatch(r"file://|[a-z][a-z0-9+.-]*://[^/\s*?#@]+", origin):
            raise ConfigError(
                f"--cors-origin {origin}: is no origin: give each as in https://app.example, http://localhost:3000 or app://obsidian.md"
            )
    return found


def choose_tokens(path: Path | None, no_auth: bool, address: Address) -> TokenFile | None:
    """The tokens of the server; None without. :class:`ConfigError` where a server without tokens could be reached from outside."""
    if path is not None and no_auth:
        raise ConfigError("--tokens and --no-auth exclude each other: give one of them")
    if path is None and not no_auth:
        raise ConfigError("tokens are needed: make some with 'idiolect token NAME --tokens FILE', or give --no-auth")
    if no_auth and not address.loopback:
        raise ConfigError(f"--no-auth at {address.host} would serve everybody: use --host 127.0.0.1, or --tokens FILE")
    if path is not None and address.cert is None and not address.loopback:
        logger.warning("without TLS tokens and speech travel readable; put a proxy with TLS before it")
    return None if path is None else TokenFile(path)
