"""The files for running the server say what the server needs: its command, no root, streaming, its own limits."""

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fl.serving.http.limits import ADAPT_PATH, MIB, ServerLimits
from sim.cli.serve_options import serve

DEPLOY = Path(__file__).parents[1] / "docs" / "deploy"
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
UNIT = DEPLOY / "idiolect.service"
NGINX = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
CADDY = (DEPLOY / "Caddyfile").read_text(encoding="utf-8")
LIMITS = ServerLimits()


def instructions(name: str) -> list[str]:
    """Arguments of a Containerfile's instruction, in order; lines that go on are joined."""
    text = re.sub(r"\\\n\s*", "", CONTAINER)
    return [line.removeprefix(f"{name} ") for line in text.splitlines() if line.startswith(f"{name} ")]


def options_exist(command: list[str]) -> None:
    """That ``idiolect serve`` has every option of ``command``."""
    app = typer.Typer()
    app.command()(serve)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    names = [word for word in command if word.startswith("--")]
    assert names
    assert [name for name in names if name not in shown] == []


@pytest.fixture
def unit() -> dict[str, list[str]]:
    """Keys of the unit's sections with all their values."""

    class Many(dict):  # type: ignore[type-arg]
        def __setitem__(self, key, value):
            if isinstance(value, list) and key in self:
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Many, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read(UNIT, encoding="utf-8")
    return {key: value.splitlines() for section in parser.sections() for key, value in parser[section].items()}


# The container


def test_the_container_serves_with_tokens_and_options_that_exist():
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    words = json.loads(command)
    assert Path(json.loads(entry)[0]).name == "idiolect"
    assert words[0] == "serve"
    assert "--no-auth" not in words
    assert words[words.index("--tokens") + 1].startswith("/run/secrets/")
    options_exist(words)


def test_the_container_runs_without_root_and_writes_only_to_its_volume():
    (user,), (volume,) = instructions("USER"), instructions("VOLUME")
    assert user.partition(":")[0].isdecimal()
    assert int(user.partition(":")[0]) > 0
    (environment,) = instructions("ENV")
    values = dict(pair.split("=", 1) for pair in environment.split())
    assert values["IDIOLECT_HOME"] == volume
    assert values["HF_HOME"].startswith(volume)
    assert values["PYTHONDONTWRITEBYTECODE"] == "1"
    assert CONTAINER.index("\nUSER ") < CONTAINER.index("\nENTRYPOINT ")


def test_the_health_check_needs_only_python_and_the_port_that_is_served():
    (check,) = instructions("HEALTHCHECK")
    words = json.loads(check[check.index("CMD ") + 4 :])
    (command,), (port,) = instructions("CMD"), instructions("EXPOSE")
    assert words[1] == "-c"
    compile(words[2], "health check", "exec")
    assert f":{port}/healthz" in words[2]
    assert json.loads(command)[json.loads(command).index("--port") + 1] == port


def test_whatever_is_shipped_is_copied_into_the_image():
    copied = {word for line in instructions("COPY") for word in line.split()[:-1]}
    assert {"fl", "clients", "strategies", "sim", "pyproject.toml", "requirements.lock"} <= copied
    root = Path(__file__).parents[1]
    assert all((root / name).exists() for name in copied if not name.startswith(("-", "/")))


# The systemd unit


def test_the_unit_serves_on_loopback_with_tokens_and_options_that_exist(unit):
    (start,) = unit["ExecStart"]
    words = start.split()
    assert Path(words[0]).name == "idiolect"
    assert words[1] == "serve"
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert "--no-auth" not in words
    credential = unit["LoadCredential"][0].partition(":")[0]
    assert words[words.index("--tokens") + 1] == f"%d/{credential}"
    options_exist(words)


def test_the_unit_is_not_root_and_cannot_become_it(unit):
    assert unit["DynamicUser"] == ["yes"]
    assert "User" not in unit
    assert unit["NoNewPrivileges"] == ["yes"]
    assert unit["CapabilityBoundingSet"] == [""] or unit["CapabilityBoundingSet"] == []
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["ProtectHome"] == ["yes"]
    assert unit["CacheDirectory"] == ["idiolect"]
    assert "IDIOLECT_HOME=%C/idiolect" in unit["Environment"][0]


def test_speech_in_memory_reaches_no_disk_by_the_unit(unit):
    assert unit["MemorySwapMax"] == ["0"]
    assert unit["LimitCORE"] == ["0"]
    assert unit["MemoryMax"][0].endswith("G")
    assert "MemoryDenyWriteExecute" not in unit  # oneDNN compiles at run time


def test_the_unit_waits_for_what_runs(unit):
    from fl.serving.http.server import GRACE_SECONDS

    assert int(unit["TimeoutStopSec"][0]) > GRACE_SECONDS


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not on this machine")
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path):
    here = tmp_path / UNIT.name  # the same with a program that is on this machine
    here.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/idiolect/bin/idiolect", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(here)], capture_output=True, text=True, timeout=60
    )
    if "Failed to initialize manager" in done.stderr:
        pytest.skip("systemd-analyze cannot run here")
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT.name in line]) == (0, [])


# Reverse proxies


def size_of(text: str) -> int:
    number, unit_name = re.fullmatch(r"(\d+)\s*([a-zA-Z]*)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"m": MIB, "mib": MIB, "": 1}[unit_name.lower()]


def locations() -> dict[str, str]:
    """nginx's locations by path."""
    return dict(re.findall(r"location (?:= )?(\S+) \{(.*?)\n    \}", NGINX, re.DOTALL))


def test_the_body_limit_of_the_proxies_is_the_servers():
    (nginx,) = re.findall(r"client_max_body_size\s+(\S+);", NGINX)
    (caddy,) = re.findall(r"max_size\s+(\S+)", CADDY)
    assert size_of(nginx) == size_of(caddy) == LIMITS.max_body_bytes


def test_partial_results_are_not_held_back_and_no_body_is_written_to_a_disk():
    forwarding = {path: text for path, text in locations().items() if "proxy_pass" in text}
    assert set(forwarding) == {"/", ADAPT_PATH}
    for text in forwarding.values():
        assert re.search(r"proxy_buffering\s+off;", text)
        assert re.search(r"proxy_request_buffering\s+off;", text)
        assert re.search(r"proxy_http_version\s+1\.1;", text)
    assert re.search(r"flush_interval\s+-1\b", CADDY)


def test_the_proxies_wait_as_long_as_the_server_may_take():
    for path, text in locations().items():
        for seconds in re.findall(r"proxy_read_timeout\s+(\d+)s;", text):
            assert int(seconds) >= LIMITS.answer_seconds(path)
    (minutes,) = re.findall(r"response_header_timeout\s+(\d+)m", CADDY)
    assert 60 * int(minutes) >= LIMITS.answer_seconds(ADAPT_PATH)
    (body,) = re.findall(r"client_body_timeout\s+(\d+)s;", NGINX)
    assert int(body) >= LIMITS.body_seconds


def test_the_proxies_speak_tls_keep_metrics_in_and_go_to_the_port_of_the_unit(unit):
    words = unit["ExecStart"][0].split()
    port = words[words.index("--port") + 1]
    assert f"server 127.0.0.1:{port};" in NGINX
    assert f"reverse_proxy 127.0.0.1:{port}" in CADDY
    assert "ssl_certificate_key" in NGINX
    assert "TLSv1.1" not in NGINX
    assert "return 301 https://" in NGINX
    assert "return 404;" in locations()["/metrics"]
    assert "respond /metrics 404" in CADDY


@pytest.mark.parametrize("text", [NGINX, CADDY], ids=["nginx", "caddy"])
def test_every_brace_of_a_proxy_file_is_closed(text: str):
    bare = re.sub(r"#.*", "", text)
    depth = 0
    for sign in re.findall(r"[{}]", bare):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0


def test_every_file_is_explained():
    page = (DEPLOY / "README.md").read_text(encoding="utf-8")
    for path in DEPLOY.iterdir():
        if path.name != "README.md":
            assert f"]({path.name})" in page
