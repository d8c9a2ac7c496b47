"""Every operation of the API's own document, asked for what nobody thought of: never a 5xx, never an undocumented answer.

``IDIOLECT_FUZZ=500`` makes 500 requests for each operation instead of a few.
"""

import os
from collections import Counter
from random import Random

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.transport.serialization import Binary

from fl.serving.http.adapt import AdaptResult
from fl.serving.http.auth import TokenFile

EXAMPLES = int(os.environ.get("IDIOLECT_FUZZ", "20"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture
def api(make_app, engine, people, packed, recording):
    """The schema of an app; most fields that it is asked with are such as get past the first checks."""
    engine.text = lambda request: f"{len(request.audio)} samples"
    app = make_app(
        TokenFile(people.path),
        adapt=lambda job: AdaptResult(job.adapter.tensors, (), True, {}),
        requests_per_minute=0,
        audio_seconds_per_minute=0,
        max_body_bytes=2**20,
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    sound = {
        "file": recording(0.3),
        "audio": [recording(0.4)],
        "texts": '["yes"]',
        "adapter": packed(),
        "adapter_handle": "",
        "model": "whisper-1",
        "language": "ko",
        "keep": True,
    }

    @schema.hook
    def map_body(context, body):
        if isinstance(body, Binary):
            return Binary(sound["adapter"]) if len(body.data) % 2 else body
        if not isinstance(body, dict):
            return body
        coin = Random(repr(sorted(body)))
        return {n: sound[n] if n in sound and coin.random() < 0.8 else value for n, value in body.items()}

    return schema, people.header(people.ann)


def test_whatever_is_asked_is_answered_as_documented(api):
    schema, headers = api
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {(o.method.upper(), o.path) for o in operations} >= {
        ("POST", "/v1/audio/transcriptions"),
        ("PUT", "/v1/adapters"),
        ("DELETE", "/v1/adapters/{handle}"),
        ("POST", "/v1/adapt"),
    }
    statuses = Counter()
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(max_examples=EXAMPLES, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                answer = case.call(headers=headers)
                statuses[case.operation.path, answer.status_code] += 1
                case.validate_response(answer, checks=CHECKS)

            try:
                ask()
            except Unsatisfiable:  # an operation that takes nothing, or any bytes, cannot be asked wrongly
                assert mode is GenerationMode.NEGATIVE
                assert operation.method.upper() != "POST"
    for path in ("/v1/audio/transcriptions", "/v1/adapters", "/v1/adapt"):
        assert statuses[path, 200] > 0  # what is generated gets past the first checks
        assert statuses[path, 422] > 0
