"""An engine that loses its core is named by /health until it has been replaced."""

import time

import httpx
import psutil
from helpers import PROMPT, inference_name, register

NOTICED_S, REPLACED_S = 60, 300


def wait_for_health(service, holds, deadline_s):
    """The first answer of /health that is as wanted."""
    deadline = time.monotonic() + deadline_s
    while not holds(health := httpx.get(f"{service.url}/health", timeout=30).json()):
        assert time.monotonic() < deadline, health
        time.sleep(0.5)
    return health


def test_health_names_an_engine_whose_core_was_killed_until_it_is_replaced(service, http):
    wait_for_health(service, lambda health: health["status"] == "ok", REPLACED_S)
    (core,) = [p for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name()]
    core.kill()
    degraded = wait_for_health(service, lambda health: health["status"] == "degraded", NOTICED_S)
    [reason] = degraded["reasons"]
    assert reason.startswith("tandem/tiny: its engine")
    assert "completions wait for it" in reason
    wait_for_health(service, lambda health: health["status"] == "ok", REPLACED_S)
    messages = [{"role": "user", "content": PROMPT}]
    completion = service.openai().chat.completions.create(
        model=inference_name(register(http)), messages=messages, max_tokens=4
    )
    assert completion.choices[0].message.content
