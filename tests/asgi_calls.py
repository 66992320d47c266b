"""Calls of ASGI applications without a port, for applications that stream and clients that leave."""

import asyncio


async def call_app(app, path, headers, body):
    """Run a POST: yield (status, headers), then the chunks of the body. Closing the generator is a disconnect."""
    messages = asyncio.Queue()
    requests = iter([{"type": "http.request", "body": body, "more_body": False}])
    disconnected = asyncio.Event()

    async def receive():
        if (request := next(requests, None)) is not None:
            return request
        await disconnected.wait()
        return {"type": "http.disconnect"}

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "query_string": b"", "root_path": ""}
    task = asyncio.create_task(app(scope, receive, messages.put))
    task.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield message["status"], [(name.decode().lower(), value.decode()) for name, value in message["headers"]]
            elif message["type"] == "http.response.body":
                if message.get("body"):
                    yield bytes(message["body"])
                if not message.get("more_body"):
                    return
        await task  # it ended before its response did, so this raises the cause
    finally:
        disconnected.set()
