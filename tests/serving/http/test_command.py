"""``idiolect serve`` and ``idiolect token``: no server for everybody without tokens, and what a command line means."""

import http.client
import json
import re
import subprocess
import sys
import typing

import pytest
import typer
from typer.testing import CliRunner

from fl.core.errors import ConfigError
from fl.serving.http.auth import TokenFile
from fl.serving.http.server import Address
from sim.cli.serve import choose_tokens, names_of, origins_of, run_server
from sim.cli.serve_options import ServeOptions, serve
from sim.cli.token import token


def cli():
    app = typer.Typer()
    app.command()(serve)
    app.command()(token)
    return app


def test_a_token_is_printed_once_and_opens_the_server(tmp_path):
    path = tmp_path / "tokens.txt"
    found = CliRunner().invoke(cli(), ["token", "phone", "--tokens", str(path)])
    assert found.exit_code == 0
    assert TokenFile(path).owner(found.stdout.strip()) == "phone"
    assert found.stdout.strip() not in path.read_text()


def test_a_script_gets_a_token_with_its_name_and_file(tmp_path):
    path = tmp_path / "tokens.txt"
    made = json.loads(CliRunner().invoke(cli(), ["token", "phone", "--tokens", str(path), "--json"]).stdout)
    assert (made["name"], made["file"]) == ("phone", str(path))
    assert TokenFile(path).owner(made["token"]) == "phone"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "speech.example", "::"])
def test_without_tokens_no_address_that_others_reach_is_served(host):
    with pytest.raises(ConfigError, match="everybody"):
        choose_tokens(None, True, Address(host))


def test_tokens_or_no_auth_must_be_said_and_not_both(people):
    with pytest.raises(ConfigError, match="idiolect token"):
        choose_tokens(None, False, Address())
    with pytest.raises(ConfigError, match="exclude each other"):
        choose_tokens(people.path, True, Address())
    assert choose_tokens(None, True, Address("localhost")) is None
    found = choose_tokens(people.path, False, Address())
    assert isinstance(found, TokenFile)


def test_directions_are_for_a_server_that_enrols(tmp_path):
    with pytest.raises(ConfigError, match="--no-adapt"):
        run_server(ServeOptions(no_auth=True, adapt=False, shared=tmp_path))


def test_an_alias_names_the_base_that_is_served():
    assert names_of("whisper-base", ["gpt-4o-transcribe=whisper-base"]) == ["gpt-4o-transcribe"]
    for wrong in ("gpt-4o-transcribe", "=whisper-base", "gpt-4o-transcribe=whisper-tiny"):
        with pytest.raises(ConfigError, match="give NAME=whisper-base"):
            names_of("whisper-base", [wrong])


def test_an_origin_is_a_scheme_and_a_host():
    given = ["app://obsidian.md", "https://App.example:8443", "file://", "chrome-extension://abcdef", "null"]
    assert origins_of(given, no_auth=False) == [origin.lower() for origin in given]
    for wrong in ("*", "https://*.example", "https://app.example/", "app.example", "https://", "https://a@b", ""):
        with pytest.raises(ConfigError, match="is no origin: give"):
            origins_of([wrong], no_auth=False)
    with pytest.raises(ConfigError, match="any page can take that origin"):
        origins_of(["null"], no_auth=True)


def test_tokens_without_tls_on_an_open_address_are_warned_of(people, caplog):
    choose_tokens(people.path, False, Address("0.0.0.0"))
    assert "TLS" in caplog.text


def test_every_option_says_what_it_is():
    for hint in typing.get_type_hints(ServeOptions, include_extras=True).values():
        assert hint.__metadata__[0].help


def test_the_command_serves_until_it_is_told_to_stop(tmp_path):
    """The real command in a process of its own, with a random base."""
    code = (
        "import logging, typer; from sim.cli.serve_options import serve; logging.basicConfig(); "
        "app = typer.Typer(); app.command()(serve); app()"
    )
    command = [sys.executable, "-c", code, "--base", "random:whisper-nano", "--no-auth", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            port = None
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    port = int(found[1])
                    break
            assert port, "".join(lines)
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            client.request("GET", "/v1/models")
            assert json.load(client.getresponse())["data"][0]["id"] == "random:whisper-nano"
            client.close()
            process.terminate()
            rest = process.stderr.read()
            assert process.wait(60) in (0, -15)
            assert "Traceback" not in rest
        finally:
            if process.poll() is None:
                process.kill()
