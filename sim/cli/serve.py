"""``idiolect serve``: the server with its engine, and the enrolments that it runs for devices."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from clients.training.enrol_method import DEFAULT
from clients.training.person import enrol_person
from clients.training.private_part import Adapter
from fl.adapters.correction import load_correction
from fl.adapters.directions import NAME, grown_from, load_directions
from fl.adapters.files import load_adapter
from fl.adapters.state import State
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.core.compute import choose_device, dtype_of
from fl.core.errors import AdapterError, ConfigError, SplitError
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.http.adapt import Adapt, AdaptJob, AdaptResult
from fl.serving.http.app import create_app
from fl.serving.http.auth import TokenFile
from fl.serving.http.limits import MIB
from fl.serving.http.server import Address, make_server
from fl.speech.features import Window
from fl.speech.languages import language_code
from fl.tasks.speech.kind import SPEECH
from fl.tasks.speech.own import OwnSpeech
from sim.cli.serve_options import ServeOptions

logger = logging.getLogger(__name__)


def enrolling(base: WhisperBase, shared: Path | None = None) -> Adapt:
    """Enrolment on modules of its own around the frozen ``base``: requests that are served meanwhile are not affected.

    Who comes with the adapter in the folder ``shared`` is drawn to the directions beside it. Raises :class:`AdapterError` for a folder
    without any, or of another base.
    """
    tensors: State = {}
    directions: State = {}
    if shared is not None:
        tensors, info = load_adapter(shared)
        info.require_base(base.fingerprint)
        directions = load_directions(shared)
        if not directions:
            raise AdapterError(f"--shared {shared}: no {NAME} is there; give the folder 'shared' of a run that has it")

    def adapt(job: AdaptJob) -> AdaptResult:
        adapter = job.adapter
        window = cast(Window, adapter.info.window)  # one of them: checked when the adapter was admitted
        utterances = [(str(number), audio, text) for number, (audio, text) in enumerate(job.utterances)]
        targets = adapter.info.config.target_modules or []
        speech = OwnSpeech(base, utterances, window=window, language=job.language, targets=targets, check=job.check)
        fitting = directions if directions and grown_from(adapter.tensors, tensors) else {}
        start = Adapter(adapter.slot, adapter.tensors, fitting)
        try:
            found = enrol_person(speech, start, DEFAULT, metric=SPEECH.main, seed=job.fields.seed)
        except SplitError as error:
            raise AdapterError(f"nothing of this adapter is trained by an enrolment: {error}") from None
        return AdaptResult(found.tensors, found.private, found.helps, found.report())

    return adapt


def run_server(options: ServeOptions) -> None:
    """Serve until the process is told to stop. Raises :class:`ConfigError` for what cannot be served, or not at this address."""
    address = Address(options.host, options.port, options.tls_cert, options.tls_key)
    limits, chosen = options.limits(), tuple(filter(None, map(language_code, options.languages.split(","))))
    origins = origins_of(options.cors_origin or (), options.no_auth)
    known = choose_tokens(options.tokens, options.no_auth, address)
    aliases = names_of(options.base, options.alias or ())
    device = choose_device(options.compute)
    if options.shared is not None and not options.adapt:
        raise ConfigError("--shared is for enrolments, and --no-adapt allows none: leave one of them out")
    loaded = load_base(options.base, dtype=dtype_of(options.precision, device)).to(device)
    if options.correction is not None:
        loaded = loaded.with_correction(load_correction(options.correction, loaded.fingerprint))
    for code in chosen:
        loaded.prefix_ids(code)
    settings = EngineSettings(options.rows, options.waiting, languages=chosen, table_bytes=options.table_mib * MIB)
    engine = BatchEngine(loaded, settings)
    try:
        app = create_app(
            engine,
            loaded,
            limits,
            tokens=known,
            adapt=enrolling(loaded, options.shared) if options.adapt else None,
            aliases=aliases,
            any_model=options.any_model,
            origins=origins,
        )
        server = make_server(app, address, limits)
        for name in ("fl.serving.http.admission", "uvicorn.error"):  # one line for each request, and where it listens
            logging.getLogger(name).setLevel(logging.INFO)
        with suppress(KeyboardInterrupt):
            server.run()
    except SystemExit:  # uvicorn's way to say that it has logged why it could not start
        where = f"{options.host}:{options.port}"
        raise ConfigError(f"{where} cannot be listened at: is a server there? Choose another --port") from None
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
