"""Meanings of the error answers of engines."""

from __future__ import annotations

import json

import pytest

from cortexd.wire.engine_errors import MAX_ERROR_BODY, is_context_overflow, is_unknown_model

MODEL = "Qwen/Qwen3-8B"


def openai(message: str, **fields: object) -> bytes:
    return json.dumps({"error": {"message": message} | fields}).encode()


UNKNOWN = {
    "our neuron": (
        404,
        openai(f"The model {MODEL!r} is not loaded here.", code="model_not_found", param=None),
    ),
    "OpenAI": (404, openai("No access.", type="invalid_request_error", code="model_not_found")),
    "vLLM": (
        404,
        openai(
            f"The model `{MODEL}` does not exist.", type="NotFoundError", param="model", code=404
        ),
    ),
    "vLLM before 0.10": (
        404,
        json.dumps(
            {
                "object": "error",
                "message": f"The model `{MODEL}` does not exist.",
                "type": "NotFoundError",
                "param": None,
                "code": 404,
            }
        ).encode(),
    ),
    "Ollama": (404, openai(f"model '{MODEL}' not found", type="not_found_error", code=None)),
    "Ollama's native error": (
        404,
        json.dumps({"error": f'model "{MODEL}" not found, try pulling it first'}).encode(),
    ),
    "Ollama's Anthropic error": (
        404,
        json.dumps(
            {
                "type": "error",
                "error": {"type": "not_found_error", "message": f"model '{MODEL}' not found"},
            }
        ).encode(),
    ),
    "Anthropic": (
        404,
        json.dumps(
            {"type": "error", "error": {"type": "not_found_error", "message": "model: x"}}
        ).encode(),
    ),
    "llama.cpp's router": (
        400,
        openai(f"model '{MODEL}' not found", type="invalid_request_error", code=400),
    ),
    "llama-swap": (404, f"no router for requested model {MODEL}".encode()),
    "LM Studio": (404, openai("Model not found", param="model", code=None)),
}

OTHER = {
    "a path of FastAPI": (404, b'{"detail":"Not Found"}'),
    "a path of llama.cpp": (
        404,
        openai("File Not Found", type="not_found_error", code=404),
    ),
    "a path of Ollama": (404, b"404 page not found"),
    "a path of our neuron": (404, openai("POST /v1/x: Not Found.", code="unknown_route")),
    "a response": (
        404,
        openai("Response with id 'resp_1' not found.", type="invalid_request_error", code=404),
    ),
    "another model's name": (404, openai("model 'other' not found", type="not_found_error")),
    "a task": (400, openai(f"The model {MODEL} does not support embeddings.")),
    "an empty body": (404, b""),
    "not a string": (404, b'{"error":{"message":["model not found"],"code":404}}'),
    "too long": (404, openai("x" * MAX_ERROR_BODY, code="model_not_found")),
    "nested too deeply": (404, b"[" * 10_000),
    "another status": (410, openai(f"model '{MODEL}' not found", code="model_not_found")),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_engine_that_lacks_the_model_is_recognized(name: str) -> None:
    status, body = UNKNOWN[name]
    assert is_unknown_model(status, body, MODEL)
    assert not is_context_overflow(status, body)


@pytest.mark.parametrize("name", OTHER)
def test_other_error_answers_are_no_missing_model(name: str) -> None:
    status, body = OTHER[name]
    assert not is_unknown_model(status, body, MODEL)
    assert not is_context_overflow(status, body)


OVERFLOW = {
    "llama.cpp": (
        400,
        openai(
            "the request exceeds the available context size, try increasing it",
            type="exceed_context_size_error",
            code=400,
            n_prompt_tokens=9000,
            n_ctx=4096,
        ),
    ),
    "llama.cpp before it had a type": (
        400,
        openai("the request exceeds the available context size. try increasing the context size"),
    ),
    "OpenAI": (400, openai("Too long.", code="context_length_exceeded", param="messages")),
    "vLLM": (
        400,
        openai(
            "This model's maximum context length is 8192 tokens. However, you requested 9216 "
            "tokens in the messages. Please reduce the length of the messages.",
            type="BadRequestError",
            code=400,
        ),
    ),
    "vLLM, of max_tokens": (
        400,
        openai(
            "'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum "
            "context length is 8192 tokens and your request has 5 input tokens."
        ),
    ),
    "vLLM, of the decoder": (
        400,
        openai("The decoder prompt (length 9000) is longer than the maximum model length of 8192."),
    ),
    "SGLang": (
        400,
        json.dumps(
            {
                "object": "error",
                "message": "The input (9000 tokens) is longer than the model's context length "
                "(8192 tokens).",
                "type": "BadRequestError",
                "code": 400,
            }
        ).encode(),
    ),
    "Anthropic": (
        400,
        json.dumps(
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "message": "prompt is too long: 205000 tokens > 200000 maximum",
                },
            }
        ).encode(),
    ),
    "TGI": (
        422,
        json.dumps(
            {
                "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= "
                "4096. Given: 5000 `inputs` tokens and 20 `max_new_tokens`",
                "error_type": "validation",
            }
        ).encode(),
    ),
    "TEI": (
        413,
        json.dumps(
            {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 600"}
        ).encode(),
    ),
    "Ollama": (400, openai("the input length exceeds the context length")),
}

NO_OVERFLOW = {
    "a field": (400, openai("max_tokens must be at least 1, got 0.", param="max_tokens")),
    "an image": (400, openai("The image exceeds the maximum size of 20 MB.")),
    "a template": (400, openai("Conversation roles must alternate user/assistant/…")),
    "a body": (413, b"Request Entity Too Large"),
    "another status": (500, openai("x", code="context_length_exceeded")),
}


@pytest.mark.parametrize("name", OVERFLOW)
def test_prompt_that_is_too_long_is_recognized(name: str) -> None:
    status, body = OVERFLOW[name]
    assert is_context_overflow(status, body)
    assert not is_unknown_model(status, body, MODEL)


@pytest.mark.parametrize("name", NO_OVERFLOW)
def test_other_refusals_are_no_overflow(name: str) -> None:
    status, body = NO_OVERFLOW[name]
    assert not is_context_overflow(status, body)
