"""/health names an engine whose core process died until Serve has replaced it."""

from helpers import PROMPT, inference_name, processes, register, wait_for_health

NOTICED_S, REPLACED_S = 300, 600  # bounds; on an idle machine a few seconds and half a minute


def of_the_engine(health):
    return [reason for reason in health["reasons"] if reason.startswith("tandem/tiny: its engine")]


def engine_cores():
    return processes(lambda process: "EngineCore" in process.name())


def test_health_names_an_engine_whose_core_was_killed_until_it_is_replaced(service, http):
    wait_for_health(service.url, lambda health: health["status"] == "ok", REPLACED_S)
    (core,) = engine_cores()
    core.kill()
    degraded = wait_for_health(service.url, of_the_engine, NOTICED_S)
    assert degraded["status"] == "degraded"
    [reason] = of_the_engine(degraded)
    assert "completions wait for it" in reason
    wait_for_health(
        service.url, lambda health: health["status"] == "ok" and engine_cores() not in ([], [core]), REPLACED_S
    )
    messages = [{"role": "user", "content": PROMPT}]
    completion = service.openai().chat.completions.create(
        model=inference_name(register(http)), messages=messages, max_tokens=4
    )
    assert completion.choices[0].message.content
