"""A federation of real processes: SuperLink with TLS, SuperNodes with keys, each in a network namespace of its own."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[2]
NETWORK = "10.213.77"  # of the bridge; it exists in the namespaces alone
SUPERLINK = f"{NETWORK}.1"
PORT = 39594
LIAR = Path(__file__).parent / "liar"


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_certificates(folder: Path) -> None:
    """``ca.crt``, ``server.pem`` and ``server.key`` of an authority of our own, for the SuperLink's address."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        authority = name == issuer
        addresses = [x509.IPAddress(ipaddress.ip_address(host)) for host in (SUPERLINK, "127.0.0.1")]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .sign(signer, hashes.SHA256())
        )

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issued = {"ca.crt": certificate("authority", authority, "authority", authority)}
    issued["server.pem"] = certificate("superlink", server, "authority", authority)
    for name, made in issued.items():
        (folder / name).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "server.key").write_bytes(_pem(server))


def make_device_key(path: Path) -> None:
    """A SuperNode's key pair as ``ssh-keygen -t ecdsa -b 384`` makes it: ``path`` and ``path.pub``."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    path.chmod(0o600)
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(*openssh))


def ip(*arguments: str) -> None:
    """Run ``ip``; raises what it says."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Federation:
    """SuperLink and SuperNodes as processes below ``folder``, each with a log there. Use as a context manager.

    ``manifests`` has the speech of each device. Namespaces are called ``<prefix>-link`` and ``<prefix>-<number>``.
    """

    folder: Path
    manifests: Mapping[str, Path]
    environment: dict[str, str]
    prefix: str = f"idiolect-{os.getpid()}"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Federation:
        self.folder.mkdir(parents=True, exist_ok=True)
        make_certificates(self.folder)
        try:
            self._make_network()
            self._start_superlink()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)
        for namespace in (self._namespace(name) for name in ("link", *self.manifests)):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)

    def _namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _make_network(self) -> None:
        link = self._namespace("link")
        ip("netns", "add", link)
        ip("-n", link, "link", "set", "lo", "up")
        ip("-n", link, "link", "add", "bridge", "type", "bridge")
        ip("-n", link, "addr", "add", f"{SUPERLINK}/24", "dev", "bridge")
        ip("-n", link, "link", "set", "bridge", "up")
        for number, name in enumerate(self.manifests, 2):
            namespace, port = self._namespace(name), f"port{number}"
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", link, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            ip("-n", link, "link", "set", port, "master", "bridge", "up")
            ip("-n", namespace, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            self.cable(name, "up")

    def _start(self, name: str, command: Sequence[str], **environment: str) -> None:
        inside = ["ip", "netns", "exec", self._namespace("link" if name == "superlink" else name), *command]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                inside,
                stdout=log,
                stderr=log,
                env={**self.environment, "FLWR_HOME": str(self.folder / f"home-{name}"), **environment},
                start_new_session=True,
            )

    def _start_superlink(self) -> None:
        self._start(
            "superlink",
            [
                "flower-superlink", "--host", SUPERLINK, "--port", str(PORT), "--enable-supernode-auth",
                "--ssl-ca-certfile", str(self.folder / "ca.crt"), "--ssl-certfile", str(self.folder / "server.pem"),
                "--ssl-keyfile", str(self.folder / "server.key"),
            ],
        )  # fmt: skip
        home = self.folder / "home-flwr"
        home.mkdir()
        address = f'address = "{SUPERLINK}:{PORT}"\nroot-certificates = "{self.folder / "ca.crt"}"\n'
        (home / "config.toml").write_text(f"[superlink.federation]\n{address}")
        self.wait_for(lambda: self.flwr("supernode", "list", "federation", "--format", "json").returncode == 0)

    def flwr(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """One command of ``flwr`` beside the SuperLink."""
        return subprocess.run(
            ["ip", "netns", "exec", self._namespace("link"), "flwr", *arguments],
            env={**self.environment, "FLWR_HOME": str(self.folder / "home-flwr")},
            **{"capture_output": True, "text": True, "check": False, "timeout": 600, **options},
        )

    def admit(self, name: str) -> None:
        """Make the device's key and register it."""
        key = self.folder / f"{name}-key"
        make_device_key(key)
        done = self.flwr("supernode", "register", str(key.with_suffix(".pub")), "federation")
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, name: str, *, node_config: str = "", **environment: str) -> None:
        """Start the device's SuperNode, again after it was killed."""
        key = self.folder / f"{name}-key"
        if not key.exists():
            self.admit(name)
        own = (
            f"device-id='{name}' store='{self.folder / 'store' / name}' manifest='{self.manifests[name]}' {node_config}"
        )
        self._start(
            name,
            [
                "flower-supernode", "--superlink", f"{SUPERLINK}:{PORT}", "--port", str(PORT),
                "--root-certificates", str(self.folder / "ca.crt"), "--auth-supernode-private-key", str(key),
                "--node-config", own,
            ],
            **environment,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        """SIGKILL to a process and all that it started; the namespace and its store stay."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if name != "superlink":  # Flower starts each ClientApp in a session of its own
            listed = subprocess.run(
                ["ip", "netns", "pids", self._namespace(name)], capture_output=True, text=True, check=False
            )
            for pid in map(int, listed.stdout.split()):
                os.kill(pid, signal.SIGKILL)

    def faults(self, name: str) -> Path:
        """The folder in which a device that was started by :meth:`start_faulty` looks for gates."""
        folder = self.folder / "faults" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def start_faulty(self, name: str, *gates: str, lies: str = "", others: str = "") -> None:
        """Start a device that does what ``liar/sitecustomize.py`` says; ``gates`` are shut until their file is removed."""
        folder = self.faults(name)
        for gate in gates:
            (folder / gate).touch()
        faults = {"IDIOLECT_FAULTS": str(folder), "IDIOLECT_LIES": lies, "IDIOLECT_OTHERS": others}
        self.start(name, PYTHONPATH=str(LIAR), **faults)

    def wait_at(self, name: str, gate: str) -> None:
        """Wait until a message of the device stands at one of its gates."""
        self.wait_for((self.faults(name) / f"{gate}.reached").exists)

    def cable(self, name: str, state: str) -> None:
        """Take the device's cable away (``down``) or put it back (``up``)."""
        ip("-n", self._namespace(name), "link", "set", "eth0", state)

    def says(self, log: str, text: str) -> bool:
        """Whether a log has this text."""
        return text in (self.folder / f"{log}.log").read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool], seconds: float = 600.0) -> None:
        """Wait until ``condition`` holds; fails with the logs' ends."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail("\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log"))))
            time.sleep(0.5)

    def activated(self) -> int:
        """How often a SuperNode came up."""
        return (self.folder / "superlink.log").read_text(errors="replace").count("Activated node_id")

    def online(self) -> int:
        """How many SuperNodes the SuperLink sees now; asking it costs seconds of a core."""
        listing = self.flwr("supernode", "list", "federation", "--format", "json")
        nodes = json.loads(listing.stdout or "{}").get("nodes", [])
        return sum(node.get("status") == "online" for node in nodes)

    def submit(self, settings: Mapping[str, object]) -> subprocess.Popen[bytes]:
        """``flwr run`` of a copy of the project, its log in ``run.log``."""
        clone = self.folder / "app"
        for package in ("fl", "clients", "strategies", "sim"):
            shutil.copytree(ROOT / package, clone / package, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("idiolect.py", "pyproject.toml", "README.md", "LICENSE", ".gitignore"):
            shutil.copy(ROOT / file, clone)
        overrides = " ".join(f"{k}={v!r}" if isinstance(v, str) else f"{k}={v}" for k, v in settings.items())
        command = ["flwr", "run", str(clone), "federation", "--stream", "--run-config", overrides]
        with (self.folder / "run.log").open("wb") as log:
            self.processes["run"] = subprocess.Popen(
                ["ip", "netns", "exec", self._namespace("link"), *command],
                stdout=log,
                stderr=log,
                env={**self.environment, "FLWR_HOME": str(self.folder / "home-flwr")},
                start_new_session=True,
            )
        return self.processes["run"]


@pytest.fixture
def make_federation(tmp_path: Path) -> Iterator[Callable[[Mapping[str, Path]], Federation]]:
    """``make_federation(manifests)``: a federation below a folder of its own; its processes and namespaces end with the test."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "IDIOLECT_HOME": str(tmp_path / "home"),
    }
    made: list[Federation] = []

    def make(manifests: Mapping[str, Path]) -> Federation:
        made.append(Federation(tmp_path / "federation", manifests, environment))
        return made[-1]

    yield make
    for federation in made:
        federation.__exit__()
