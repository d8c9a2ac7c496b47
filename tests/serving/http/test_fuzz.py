"""Every operation of the API's own document, asked for what nobody thought of: never a 5xx, never an undocumented answer.

``IDIOLECT_FUZZ=500`` makes 500 requests for each operation instead of a few.
"""

import os
from random import Random

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fl.serving.auth import TokenFile

EXAMPLES = int(os.environ.get("IDIOLECT_FUZZ", "20"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def api(make_app, engine, people, packed, recording):
    """The schema of an app; in every second request with files these are such as get past the first checks."""
    engine.text = lambda request: f"{len(request.audio)} samples"
    app = make_app(
        TokenFile(people.path),
        adapt=lambda job: pytest.fail("nothing generated is trained"),
        requests_per_minute=0,
        audio_seconds_per_minute=0,
        max_body_bytes=2**20,
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    sound = {"file": recording(0.3), "adapter": packed()}

    @schema.hook
    def map_body(context, body):
        if isinstance(body, dict):
            coin = Random(repr(sorted(body)))
            return {
                name: sound[name] if name in sound and coin.random() < 0.5 else value for name, value in body.items()
            }
        return body

    return schema, people.header(people.ann)


@pytest.fixture
def document(api):
    return api[0]


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_is_answered_as_documented(case, api):
    case.call_and_validate(headers=api[1], checks=CHECKS)
