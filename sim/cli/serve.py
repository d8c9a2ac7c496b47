"""The server of ``idiolect serve`` with its engine, and the local steps that it runs for devices."""

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from peft import get_peft_model
from torch import Tensor, nn

from clients.training.single import train_locally
from fl.adapters.correction import load_correction
from fl.adapters.state import adapter_parameters, adapter_state, load_state
from fl.algorithms.plan import LocalPlan
from fl.bases.resolve import load_base
from fl.bases.whisper.base import WhisperBase
from fl.core.compute import choose_device, dtype_of
from fl.core.errors import ConfigError
from fl.serving.engine.engine import BatchEngine, EngineSettings
from fl.serving.http.adapt import Adapt, AdaptJob, AdaptResult
from fl.serving.http.app import create_app
from fl.serving.http.auth import TokenFile
from fl.serving.http.limits import MIB
from fl.serving.http.server import Address, make_server
from fl.speech.features import Window
from fl.speech.languages import language_code
from fl.tasks.task import Example, Task
from sim.cli.serve_options import ServeOptions

SLOT = "gated-adapt"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _UtteranceLoss:
    """What :func:`train_locally` needs of a task: the loss of labelled utterances that are there already."""

    base: WhisperBase
    job: AdaptJob
    window: Window

    def loss(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy in nats; raises where the client has hung up."""
        self.job.check()
        features, texts = [example.inputs for example in examples], [example.target for example in examples]
        batch = self.base.collate(features, texts, self.window, self.job.language or None)
        return self.base.loss(model, batch.to(next(self.base.model.parameters()).device))


def local_steps(base: WhisperBase) -> Adapt:
    """Training on modules of its own around the frozen ``base``: requests that are served meanwhile are not affected."""

    def adapt(job: AdaptJob) -> AdaptResult:
        info, fields = job.adapter.info, job.fields
        window = cast(Window, info.window)  # one of them: checked when the adapter was admitted
        model = get_peft_model(base.new_model(), replace(info.config), adapter_name=SLOT).eval()
        load_state(model, job.adapter.tensors, SLOT)
        examples = []
        for number, (audio, text) in enumerate(job.utterances):
            job.check()
            features = base.features(audio, window)
            examples.append(Example(str(number), features, text, int(features.shape[1]), {}))
        plan = LocalPlan(
            steps=fields.steps,
            batch_size=fields.batch_size,
            learning_rate=fields.learning_rate,
            private_learning_rate=fields.private_learning_rate,
            gate_dropout=fields.gate_dropout,
            private_steps=fields.private_steps,
        )
        task = cast(Task, _UtteranceLoss(base, job, window))  # of a task, training itself only asks for the loss
        parameters = adapter_parameters(model, SLOT)
        result = train_locally(model, parameters, job.split, task, examples, plan, seed=fields.seed)
        return AdaptResult(adapter_state(model, SLOT), result.loss, result.examples, result.steps, result.seconds)

    return adapt


def run_server(options: ServeOptions) -> None:
    """Serve until the process is told to stop. Raises :class:`ConfigError` for what cannot be served, or not at this address."""
    address = Address(options.host, options.port, options.tls_cert, options.tls_key)
    limits, chosen = options.limits(), tuple(filter(None, map(language_code, options.languages.split(","))))
    origins = origins_of(options.cors_origin or (), options.no_auth)
    known = choose_tokens(options.tokens, options.no_auth, address)
    aliases = names_of(options.base, options.alias or ())
    device = choose_device(options.compute)
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
            adapt=local_steps(loaded) if options.adapt else None,
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
