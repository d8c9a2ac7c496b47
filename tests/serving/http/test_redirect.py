"""No answer sends a caller, and a token, to where the caller's own Host header points."""

import pytest
from starlette.testclient import TestClient

from fl.serving.http.auth import TokenFile


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/healthz/"),
        ("GET", "/metrics/"),
        ("GET", "/openapi.json/"),
        ("GET", "/v1/models/"),
        ("PUT", "/v1/adapters/"),
        ("POST", "/v1/audio/transcriptions/"),
        ("GET", "/problems/busy/"),
        ("GET", "//evil.example/"),
        ("GET", "/%2f%2fevil.example/.."),
    ],
)
def test_nothing_is_redirected(people, make_app, method: str, path: str) -> None:
    app = make_app(TokenFile(people.path))
    with TestClient(app, base_url="http://evil.example", raise_server_exceptions=False) as client:
        headers = {"Authorization": f"Bearer {people.ann}"}
        answer = client.request(method, path, headers=headers, follow_redirects=False)
    assert not 300 <= answer.status_code < 400
    assert "location" not in answer.headers
    assert "evil.example" not in answer.text
