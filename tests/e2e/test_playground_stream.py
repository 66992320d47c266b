"""A streamed answer of the running service has what the page's playground shows of it."""

import json

from helpers import PROMPT, inference_name, register

OPTIONS = {"temperature": 1, "seed": 1, "max_tokens": 8, "logprobs": True, "top_logprobs": 5}


def test_a_stream_has_tokens_with_texts_alternatives_usage_and_version(http):
    body = {
        "model": inference_name(register(http), 0),
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **OPTIONS,
    }
    with http.stream("POST", "/chat/completions", json=body) as response:
        assert response.headers["x-policy-version"] == "0" and len(response.headers["x-policy-digest"]) == 64
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(one) for one in data[:-1]]
    parts = [choice for chunk in chunks for choice in chunk["choices"]]
    tokens = [token for part in parts for token in ((part.get("logprobs") or {}).get("content") or ())]
    text = "".join(part["delta"].get("content") or "" for part in parts)
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode(errors="replace").startswith(text)
    assert text and all(len(token["top_logprobs"]) == 5 for token in tokens)
    assert chunks[-1]["usage"]["completion_tokens"] == len(tokens) <= 8
    assert parts[-1]["finish_reason"] in ("stop", "length")
