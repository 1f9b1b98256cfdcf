from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.gateway.intake import parse_view, with_model
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet

DEEP = b'{"model":"m","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        (b"", errors.INVALID_JSON, None),
        (b"not json", errors.INVALID_JSON, None),
        (b'{"model":"m"', errors.INVALID_JSON, None),
        (b'{"model":"m"} trailing', errors.INVALID_JSON, None),
        (b'{"model":NaN}', errors.INVALID_JSON, None),
        (b"\xff\xfe", errors.INVALID_JSON, None),
        (DEEP, errors.INVALID_JSON, None),
        (b"[]", errors.MISSING_MODEL, "model"),
        (b'"m"', errors.MISSING_MODEL, "model"),
        (b"null", errors.MISSING_MODEL, "model"),
        (b"{}", errors.MISSING_MODEL, "model"),
        (b'{"model":null}', errors.MISSING_MODEL, "model"),
        (b'{"model":7}', errors.MISSING_MODEL, "model"),
        (b'{"model":"m","stream":"yes"}', errors.INVALID_VALUE, "stream"),
        (b'{"model":"m","stream":1}', errors.INVALID_VALUE, "stream"),
        (b'{"model":"%s"}' % (b"m" * 513), errors.INVALID_VALUE, "model"),
    ],
)
def test_bad_bodies_are_refused_in_words(body: bytes, kind: errors.Kind, param: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        parse_view(body)
    assert refused.value.kind is kind
    assert refused.value.param == param
    assert refused.value.message.endswith(".")


@pytest.mark.parametrize(
    ("body", "model", "stream"),
    [
        (b'{"model":"m"}', "m", None),
        (b'{"model":"m","stream":null}', "m", None),
        (b'{"model":"m","stream":true}', "m", True),
        (b' {"stream":false,"model":"a/b:c"} \n', "a/b:c", False),
        (b'{"model":"first","model":"last"}', "last", None),
        (b'{"model":"\\u00e9\\u202e"}', "é\u202e", None),
    ],
)
def test_the_fields_that_routing_reads(body: bytes, model: str, stream: bool | None) -> None:
    view = parse_view(body)
    assert (view.model, view.stream) == (model, stream)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_json"),
        ("/v1/chat/completions", DEEP, 400, "invalid_json"),
        ("/v1/embeddings", b"[]", 400, "missing_model"),
        ("/v1/messages", b'{"model":"m","stream":3}', 400, "invalid_value"),
    ],
)
async def test_bad_bodies_on_the_wire(path: str, body: bytes, status: int, code: str) -> None:
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        fleet.client.post(fleet.url + path, data=body) as response,
    ):
        assert response.status == status
        assert response.headers["x-cortex-code"] == code
        assert not fleet.neurons["a"].inference


@pytest.mark.parametrize("given_id", ["x" * 129, "white space", "é", 'quo"te', "new\tline"])
async def test_a_request_id_that_is_not_plain_is_replaced(given_id: str) -> None:
    async with (
        running_fleet() as fleet,
        fleet.client.get(fleet.url + "/health", headers={"x-request-id": given_id}) as response,
    ):
        assert response.headers["x-request-id"].startswith("req_")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values), st.text())
def test_an_alias_changes_the_model_and_nothing_else(fields: dict[str, object], to: str) -> None:
    body = json.dumps(fields | {"model": "alias"}).encode()
    changed = with_model(body, to)
    assert json.loads(changed) == json.loads(body) | {"model": to}
    assert list(json.loads(changed)) == list(json.loads(body))


def test_an_alias_leaves_the_spelling_of_values_alone() -> None:
    body = b'{"n": 1.50e0,"model":"x","s":"\\u00e9","big":123456789012345678901234567890}'
    assert with_model(body, "y") == (
        b'{"n":1.50e0,"model":"y","s":"\\u00e9","big":123456789012345678901234567890}'
    )
