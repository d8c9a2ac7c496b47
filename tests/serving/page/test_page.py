"""The page as it is sent: one file, nothing fetched, and a policy that lets nothing else run."""

import base64
import hashlib
import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fl.serving.page import SCRIPTS, headers, page, policy, router
from fl.speech.audio import MAX_SECONDS


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


def digest(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_page_is_served_with_its_policy_and_is_no_part_of_the_api(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text == page()
    assert {name: answer.headers[name] for name in headers()} == headers()
    assert answer.headers["permissions-policy"].startswith("microphone=(self)")
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/openapi.json").json()["paths"] == {}


def test_head_gives_the_headers_alone(client):
    answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-security-policy"] == policy()


def test_the_policy_names_the_one_script_and_the_one_style_by_their_hash():
    rules = dict(rule.split(" ", 1) for rule in policy().split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", page(), re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", page(), re.DOTALL)
    assert rules["script-src"] == f"{digest(script)} blob:"
    assert rules["style-src"] == digest(style)
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in policy()


def test_nothing_in_the_page_names_another_place():
    text = page().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    assert not re.search(r"@import|url\(", text)
    assert not re.search(r'\s(?:src|href)="(?!data:)', text)


def test_nothing_is_kept_in_the_browser_and_no_string_becomes_html():
    forbidden = (
        r"localStorage|sessionStorage|indexedDB|document\.cookie|innerHTML|outerHTML|insertAdjacentHTML|\beval\b"
    )
    assert not re.search(forbidden, page())
    assert " style=" not in page()  # an attribute that the policy would drop


def test_the_page_knows_the_limits_of_the_server_and_holds_every_script():
    assert f'data-max-seconds="{MAX_SECONDS:g}"' in page()
    assert "{{" not in page()
    assert page().count("\n// ") > len(SCRIPTS)
