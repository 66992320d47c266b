"""Bodies that vLLM can't carry to its core, and the model that a request names."""

import pytest

from tandem.cluster.engine.requests.request_checks import policy_request


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a":' * 100_000,
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 9223372036854775808}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
        rb'{"a": "\ud800"}',
    ],
    ids=lambda body: str(body[:30]),
)
def test_bodies_that_vllm_could_not_carry_to_its_core_are_refused(body):
    with pytest.raises(ValueError, match="The request body can't be read"):
        policy_request(body, "policy-x")


def test_the_model_of_a_request_is_replaced_and_nothing_else():
    body = '{"model": "a/b", "n": -9223372036854775808, "x": [null, true, 1.5, "\u00e9"]}'
    expected = {"model": "policy-x", "n": -(2**63), "x": [None, True, 1.5, "\u00e9"]}
    assert policy_request(body.encode(), "policy-x") == expected
