"""Stand-ins for the parts of the service that need Ray and vLLM, and small requests."""

import asyncio
import hashlib
import io
import json
import tarfile
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property

from asgi_calls import call_app
from paths import DATA

from tandem.cluster.engine.requests.completions import Completions
from tandem.cluster.engine.requests.headers import DIGEST_HEADER
from tandem.cluster.engine.requests.vllm_routes import ANNOTATOR, REQUEST
from tandem.rl.base_text import BaseText
from tandem.rl.batch import build_batch, check_groups
from tandem.rl.version_probe import VersionProbe

TOKENIZER = DATA / "tokenizer"


class TextModel:
    """A base model for the preparation of payloads, with the tokenizer of the recorded vectors."""

    @cached_property
    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(TOKENIZER)

    @property
    def text(self):
        return BaseText(self.tokenizer, max_model_len=256)

    def build_batch(self, groups, config, shuffle_seed):
        return build_batch(groups, self.tokenizer, config, max_model_len=256, shuffle_seed=shuffle_seed)

    def check_groups(self, groups, config):
        check_groups(groups, self.tokenizer, config, max_model_len=256)


@dataclass
class Engine:
    """An engine whose vLLM answers with chunks that a test sets. It records the requests that vLLM would get."""

    status: int = 200
    headers: dict = field(default_factory=lambda: {"content-type": "application/json"})
    chunks: list = field(default_factory=list)
    """Each is bytes to send, seconds to wait, or an exception to raise."""
    asked: list = field(default_factory=list)
    closed: int = 0

    async def serves(self, base_model):
        return True

    async def http(self, base_model, method, path, headers, body, digest, replica=None):
        async def serve(pinned, scope, receive, send):
            self.asked.append((base_model, method, path, dict(headers), scope[REQUEST], pinned))
            await self._answer(scope[ANNOTATOR], send)

        items = call_app(Completions(serve), path, [*headers, (DIGEST_HEADER, digest)], body)
        try:
            async with aclosing(items):
                async for item in items:
                    yield item
        finally:
            self.closed += 1

    async def _answer(self, annotator, send):
        is_whole = self.headers["content-type"] == "application/json"
        if self.chunks and is_whole:
            await self._wait_or_raise(self.chunks[0])
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for chunk in self.chunks:
            await self._wait_or_raise(chunk)
            if isinstance(chunk, bytes):
                body = annotator.body(chunk) if is_whole else chunk
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _wait_or_raise(self, chunk):
        if isinstance(chunk, int | float):
            await asyncio.sleep(chunk)
        if isinstance(chunk, Exception):
            raise chunk

    def answers(self, body, status=200):
        self.status, self.chunks = status, [json.dumps(body).encode()]

    def streams(self, *chunks):
        self.headers, self.chunks = {"content-type": "text/event-stream; charset=utf-8"}, list(chunks)


def choice(token_ids=(300, 301, 424), logprob=-0.5, **changes):
    """Return a sampled turn as the engine does, with ids of the recorded tokenizer."""
    content = [
        {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []} for token in token_ids
    ]
    return {
        "finish_reason": "stop",
        "index": 0,
        "logprobs": {"content": content, "refusal": None},
        "message": {"role": "assistant", "content": "seven", "refusal": None, "tool_calls": None},
        "token_ids": list(token_ids),
        **changes,
    }


def trajectory(reward, **changes):
    return {"messages_and_choices": [{"role": "user", "content": "1 + 6 = ?"}, choice()], "reward": reward, **changes}


def groups(num=1):
    return [{"trajectories": [trajectory(0.0), trajectory(1.0)]} for _ in range(num)]


@dataclass
class Trials:
    """Learners and engines that have tried a version, with answers that a test sets."""

    logprobs: list = field(default_factory=lambda: [-1.0, -2.0])
    answers: list = field(default_factory=list)
    tried: list = field(default_factory=list)
    """The digests."""

    def probe(self, base_model, digest):
        self.tried.append(digest)
        return VersionProbe([1, 2, 3], self.logprobs, "torch.float32")

    def load(self, base_model, digest):
        return self.answers


@dataclass(frozen=True)
class Imported:
    """An archive of an adapter, and the hash of its content."""

    archive: bytes
    sha256: str


def imported():
    files, buffer = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    digests = b"".join(hashlib.sha256(content).digest() for content in files.values())
    return Imported(buffer.getvalue(), hashlib.sha256(digests).hexdigest())
