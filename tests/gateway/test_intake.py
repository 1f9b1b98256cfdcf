from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd import errors
from cortexd.errors import Refusal
from cortexd.gateway.intake import MAX_COLONS, parse_view, with_model
from tests.fakes import FakeNeuron
from tests.gateway.fleet import running_fleet

DEEP = b'{"model":"m","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
FORM = "Multipart/Form-Data; boundary=b"
HUGE = b"9" * 100_000
KEYS = b'{"model":"m",' + b",".join(b'"k%d":%d' % (i, i) for i in range(10**6)) + b"}"
BOM = b"\xef\xbb\xbf"


def form(*parts: tuple[str, bytes]) -> bytes:
    """A form of those fields."""
    fields = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value
        for name, value in parts
    ]
    return b"\r\n".join([*fields, b"--b--\r\n"])


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        (b"", errors.INVALID_JSON, None),
        (b"not json", errors.INVALID_JSON, None),
        (b'{"model":"m"', errors.INVALID_JSON, None),
        (b'{"model":"m"} trailing', errors.INVALID_JSON, None),
        (b'{"model":NaN}', errors.INVALID_JSON, None),
        (b'{"model":"m","x":-Infinity}', errors.INVALID_JSON, None),
        (b"\xff\xfe", errors.INVALID_JSON, None),
        (BOM + b'{"model":"m"}', errors.INVALID_JSON, None),
        ('{"model":"m"}'.encode("utf-16"), errors.INVALID_JSON, None),
        (b'{"model":"\xff"}', errors.INVALID_JSON, None),
        (b'{"model":"\\ud800"}', errors.INVALID_JSON, None),
        (b'{"model":"m","x":"\\udc00"}', errors.INVALID_JSON, None),
        (b'{"model":"m"}\0', errors.INVALID_JSON, None),
        (b'{"model":"m","x":"\n"}', errors.INVALID_JSON, None),
        pytest.param(b'{"model":%s}' % HUGE, errors.MISSING_MODEL, "model", id="a huge number"),
        (b'{"model":"m","model":null}', errors.MISSING_MODEL, "model"),
        pytest.param(DEEP, errors.INVALID_JSON, None, id="deep"),
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
        (b'{"model":"m","stream":true,"stream":false}', "m", False),
        (b'{"mod\\u0065l":"m"}', "m", None),
        (b'{"model":"m","x":"\xff","\xff":"\xed\xa0\x80"}', "m", None),
        pytest.param(b'{"model":"m","x":%s,"y":1e999999}' % HUGE, "m", None, id="huge numbers"),
        pytest.param(KEYS, "m", None, id="a million keys"),
        (b'{"model":"\\u00e9\\u202e"}', "é\u202e", None),
    ],
)
def test_the_fields_that_routing_reads(body: bytes, model: str, stream: bool | None) -> None:
    view = parse_view(body)
    assert (view.model, view.stream) == (model, stream)


@pytest.mark.parametrize(
    ("value", "stream"),
    [
        (b"true", True),
        (b"True", True),
        (b"1", True),
        (b"on", True),
        (b"false", False),
        (b"FALSE", False),
        (b"0", False),
        (b"", None),
        (None, None),
    ],
)
def test_a_form_says_in_words_whether_it_wants_a_stream(
    value: bytes | None, stream: bool | None
) -> None:
    parts = [("model", b"m")] if value is None else [("stream", value), ("model", b"m")]
    view = parse_view(form(*parts), FORM)
    assert (view.model, view.stream) == ("m", stream)


@pytest.mark.parametrize("value", [b"2", b"maybe", b"trueandmore", b"true ", b"\xff", b"null"])
def test_any_other_word_is_refused(value: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_view(form(("model", b"m"), ("stream", value)), FORM)
    assert (refused.value.kind, refused.value.param) == (errors.INVALID_VALUE, "stream")


CANARY = "canary-secret"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"model":"m","prompt":"canary-secret', ""),
        (b"canary-secret", ""),
        (b'{"canary-secret"}', ""),
        (b'{"model":{"canary-secret":"canary-secret"}}', ""),
        (b'{"model":"m","stream":"canary-secret"}', ""),
        (b'"canary-secret"', ""),
        (b'{"model":"\xffcanary-secret"}', ""),
        (b'{"model":"%s"}' % (b"canary-secret" * 50), ""),
        (b"canary-secret", "multipart/form-data; boundary=canary-secret"),
        (b"--b\r\ncanary-secret", "multipart/form-data; boundary=b"),
        (b"--b\r\ncanary-secret\0:x\r\n", "multipart/form-data; boundary=b"),
        (b"--bcanary-secret\r\n", "multipart/form-data; boundary=b"),
    ],
)
def test_a_refusal_repeats_nothing_of_the_body(body: bytes, content_type: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_view(body, content_type)
    assert CANARY not in refused.value.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","x":"\xff","\xff":"\xed\xa0\x80"}',
        b'{"model":"m","n":%s}' % (b"9" * 4000),
        b'\r\n {"model" : "m" ,"model":"m","a":1,"a":2}\t ',
        b'{"model":"m","x":' + b"[" * 500 + b"]" * 500 + b"}",
    ],
)
async def test_odd_bodies_that_can_be_read_are_passed_on_as_they_are(body: bytes) -> None:
    async with (
        running_fleet(a=FakeNeuron({"m": "loaded"})) as fleet,
        fleet.client.post(fleet.url + "/v1/completions", data=body) as response,
    ):
        assert response.status == 200
        assert fleet.neurons["a"].inference_bodies == [body]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_json"),
        pytest.param("/v1/chat/completions", DEEP, 400, "invalid_json", id="deep"),
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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            b' {"n": 1.50e0,"model" : "x","s":"\\u00e9","big":123456789012345678901234567890}\r\n',
            b' {"n": 1.50e0,"model" : "y","s":"\\u00e9","big":123456789012345678901234567890}\r\n',
        ),
        (b'{"mod\\u0065l":"\\u0078","y":1}', b'{"mod\\u0065l":"y","y":1}'),
        (b'{"model":"z","model":"x"}', b'{"model":"z","model":"y"}'),
        (b'{"model":"x","a":1,"a":2}', b'{"model":"y","a":1,"a":2}'),
        (b'{"x":"x\\"x","model":"x"}', b'{"x":"x\\"x","model":"y"}'),
        (b'{"\xff":"\xff","model":"x"}', b'{"\xff":"\xff","model":"y"}'),
        (b'{"model":"x","a":' + b"[" * 900 + b"]" * 900 + b"}", None),
        # Where the same text stands elsewhere too, space may go, but nothing else.
        (b'{"user": "x", "model": "x", "s": "\\u00e9"}', b'{"user":"x","model":"y","s":"\\u00e9"}'),
        (b'{"model":"x","user":"x","model":"x"}', b'{"model":"y","user":"x"}'),
        (b'{"x":1,"model":"x"}', b'{"x":1,"model":"y"}'),
        (b'{"model":"x","messages":["x", "model"]}', b'{"model":"y","messages":["x", "model"]}'),
    ],
)
def test_an_alias_leaves_the_spelling_of_everything_else_alone(
    before: bytes, after: bytes | None
) -> None:
    assert with_model(before, "y") == (after or before.replace(b'"x"', b'"y"'))


@pytest.mark.parametrize("alias", [":", ",", '"', "{", "}", "model", "\\", "", " ", "é", "\0"])
def test_no_name_is_too_odd_for_an_alias(alias: str) -> None:
    for body in (
        json.dumps({"a": "b", "model": alias, "c": [alias]}),
        json.dumps({"a": 1, "model": alias, "c": "d"}, separators=(",", ":")),
        json.dumps({"model": alias}, ensure_ascii=False, separators=(",", ":")),
    ):
        changed = json.loads(with_model(body.encode(), "y"))
        assert changed == json.loads(body) | {"model": "y"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"\xff":"x","model":"x"}', errors.INVALID_JSON),
        (b'{"model":"x","a":["x"' + b',{"":0}' * MAX_COLONS + b"]}", errors.INVALID_VALUE),
    ],
    ids=["a key is not UTF-8", "many fields"],
)
def test_what_can_be_read_but_not_rewritten_is_refused_in_words(
    body: bytes, kind: errors.Kind
) -> None:
    assert parse_view(body).model == "x"
    with pytest.raises(Refusal) as refused:
        with_model(body, "y")
    assert refused.value.kind is kind


def test_wherever_nesting_is_too_deep_it_is_so_for_an_alias_too() -> None:
    for depth in (100, 900, 990, 997, 1000, 1100, 10_000):
        body = b'{"user":"x","model":"x","a":' + b"[" * depth + b"]" * depth + b"}"
        for read in (parse_view, lambda body: with_model(body, "y")):
            try:
                read(body)
            except Refusal as refused:
                assert refused.kind is errors.INVALID_JSON


def test_an_alias_in_a_form_changes_the_models_bytes_alone() -> None:
    file = ('file"; filename="a', b"\0model\r\nx")
    for before, after in (
        ([("model", b"x"), file], [("model", b"y/z"), file]),
        ([file, ("model", b"x")], [file, ("model", b"y/z")]),
        ([("model", b"x"), ("model", b"x")], [("model", b"x"), ("model", b"y/z")]),
    ):
        assert with_model(form(*before), "y/z", FORM) == form(*after)
