"""Generated requests over every route of the API description."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("with_keys", [False, True])
def test_no_request_that_the_description_allows_ends_in_a_5xx(
    serving, keys_file, keys_of, with_keys
):
    """Generated requests, valid and not, over every route."""
    import hypothesis
    import schemathesis

    changes = {"keys_file": keys_file} if with_keys else {}
    headers = {"X-Api-Key": keys_of["admin"]} if with_keys else {}
    with serving(timeout_ms=20_000, **changes) as client:
        text = client.get("/openapi.json", headers=headers).json()
        schema = schemathesis.openapi.from_dict(json.loads(json.dumps(text)))
        walked = set()
        for operation in schema.get_all_operations():
            operation = operation.ok()

            def check(case):
                given = case.as_transport_kwargs(base_url="http://testserver")
                given.pop("cookies", None)
                given["headers"] = {**(given.get("headers") or {}), **headers}
                answer = client.request(**{k: v for k, v in given.items() if v is not None})
                assert answer.status_code < 500, (case.method, case.path, answer.text)

            settings = hypothesis.settings(
                max_examples=25, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            settings(hypothesis.given(operation.as_strategy())(check))()
            walked.add((operation.method, operation.path))
        assert len(walked) >= 24
