"""A client of any protocol who leaves ends the generation, whole or in a stream."""

import asyncio
from contextlib import aclosing

import pytest
from asgi_calls import call_app
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Route

from tandem.cluster.engine.requests.completions import ANNOTATORS
from tandem.cluster.engine.requests.generations import RecordingClient
from tandem.cluster.engine.requests.protocols import MESSAGES, RESPONSES
from tandem.cluster.engine.requests.vllm_routes import ANNOTATOR, REQUEST, _endpoint

DELTA = {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "content_index": 0, "delta": "x"}
PART = {
    RESPONSES: ResponseTextDeltaEvent.model_validate(DELTA | {"logprobs": [], "sequence_number": 0}),
    MESSAGES: "event: ping\ndata: {}\n\n",
}


class Asked(BaseModel):
    stream: bool


class Params:
    logprobs = 0


class EndlessClient:
    """An engine that generates until it is closed."""

    def __init__(self):
        self.has_begun, self.is_closed = asyncio.Event(), asyncio.Event()

    async def generate(self, prompt, params, request_id):
        try:
            self.has_begun.set()
            yield OUTPUT
            await asyncio.Event().wait()
        finally:
            self.is_closed.set()


class OUTPUT:
    prompt_token_ids, outputs = [1], ()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_a_client_who_leaves_ends_the_generation(path, is_stream):
    async def main():
        client = EndlessClient()

        async def parts():
            async for _ in RecordingClient(client).generate("prompt", Params(), "id"):
                yield PART[path]

        async def handle(asked, request):
            if asked.stream:
                return parts()
            return [part async for part in parts()]

        annotator = ANNOTATORS[path]("name", "policy-x", 0, {})
        app = Starlette(routes=[Route(path, _endpoint(Asked, handle), methods=["POST"])])

        async def engine(scope, receive, send):
            await app({**scope, REQUEST: {"stream": is_stream}, ANNOTATOR: annotator}, receive, send)

        async with asyncio.timeout(60), aclosing(call_app(engine, path, [], b"{}")) as items:
            reading = asyncio.create_task(anext(items))
            await client.has_begun.wait()
            if is_stream:
                assert (await reading)[0] == 200 and await anext(items)
            else:
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        async with asyncio.timeout(60):
            await client.is_closed.wait()
        assert [generation.prompt_token_ids for generation in annotator.generations] == [[1]]

    asyncio.run(main())
