"""Malformed training data from broken clients is rejected with its place, in plain words, and leaves nothing behind.

A row of a table has the value that a client sends, the place of the problem, and words of its message.
"""

import json
import re

import pytest
from refusals import assert_one_shape, everything_held
from serve_fakes import choice, groups, trajectory

JOBS = "/v1/preview/training-jobs"
LEFT_OUT = object()


def changed(mapping, changes):
    return {key: value for key, value in {**mapping, **changes}.items() if value is not LEFT_OUT}


def text(body):
    """Return JSON with a string like "@NaN@" replaced by the bare word."""
    return re.sub(r'"@([^"@]+)@"', r"\1", json.dumps(body)).encode()


@pytest.fixture
def held(store_url, services):
    return lambda: everything_held(store_url, services.config.home / "artifacts")


@pytest.fixture
def refused(http, held):
    """Post this body of a job and return its error."""

    def refused(content, **headers):
        before = held()
        error = assert_one_shape(http.post(JOBS, content=content, headers=headers), 422)
        assert held() == before
        return error

    return refused


@pytest.fixture
def refused_job(refused, model):
    """Post a job with these changes and return its error."""
    return lambda changes: refused(text(changed({"model_id": model["id"], "trajectory_groups": groups()}, changes)))


def assert_says(error, place, words):
    assert error["param"] == place
    assert error["message"].startswith(f"{place}: ")
    assert words in error["message"]


def table(rows):
    return pytest.mark.parametrize(("sent", "place", "words"), rows.values(), ids=rows)


MISSING = "is missing; send it"
NOT_AN_ID = "must be an id (a UUID) as this service gave it"
NOT_FINITE = "must be a finite number: JSON has neither NaN nor infinities"
GROUP = "trajectory_groups.0"
TRAJECTORIES = f"{GROUP}.trajectories"


@table(
    {
        "no model": ({"model_id": LEFT_OUT}, "model_id", MISSING),
        "null for a model": ({"model_id": None}, "model_id", NOT_AN_ID),
        "a number for a model": ({"model_id": 7}, "model_id", NOT_AN_ID),
        "a name for a model": ({"model_id": "team/project/agent"}, "model_id", NOT_AN_ID),
        "an enormous id": ({"model_id": "x" * 10**6}, "model_id", NOT_AN_ID),
        "no groups": ({"trajectory_groups": LEFT_OUT}, "trajectory_groups", MISSING),
        "null for groups": ({"trajectory_groups": None}, "trajectory_groups", "must be an array"),
        "an object of groups": ({"trajectory_groups": {"0": []}}, "trajectory_groups", "must be an array"),
        "groups in a string": ({"trajectory_groups": "[]"}, "trajectory_groups", "must be an array"),
        "null for a group": ({"trajectory_groups": [None]}, GROUP, "must be an object"),
        "an array for a group": ({"trajectory_groups": [[trajectory(1.0)]]}, GROUP, "must be an object"),
        "a trajectory for a group": (
            {"trajectory_groups": [trajectory(1.0)]},
            "trajectory_groups.0.messages_and_choices",
            "nothing else here can be trained",
        ),
        "null for trajectories": ({"trajectory_groups": [{"trajectories": None}]}, TRAJECTORIES, "must be an array"),
        "null for a trajectory": (
            {"trajectory_groups": [{"trajectories": [trajectory(1.0), None]}]},
            f"{TRAJECTORIES}.1",
            "must be an object",
        ),
        "a trajectory in a string": (
            {"trajectory_groups": [*groups(), {"trajectories": [json.dumps(trajectory(1.0))]}]},
            "trajectory_groups.1.trajectories.0",
            "must be an object",
        ),
        "a misspelt key": ({"experimental_confg": {}}, "experimental_confg", "did you mean experimental_config?"),
        "an unknown key": ({"priority": 1}, "priority", "isn't known here; leave it out"),
        "an enormous key": ({"x" * 10**5: 1}, f"{'x' * 64}…", "isn't known here; leave it out"),
    }
)
def test_jobs(refused_job, sent, place, words):
    assert_says(refused_job(sent), f"body.{place}", words)


@table(
    {
        "an array": ([], "", "must be an object"),
        "a word": ("fast", "", "must be an object"),
        "a misspelt option": ({"learningrate": 1e-5}, ".learningrate", "did you mean learning_rate?"),
        "a rate in words": ({"learning_rate": "fast"}, ".learning_rate", "must be a number"),
        "true for a rate": ({"learning_rate": True}, ".learning_rate", "must be a number"),
        "a negative rate": ({"learning_rate": -1}, ".learning_rate", "must be between 0 and 1, got -1.0"),
        "a rate beyond float32": ({"learning_rate": 1e300}, ".learning_rate", "between 0 and 1, got 1e+300"),
        "an infinite rate": ({"learning_rate": "@1e999@"}, ".learning_rate", NOT_FINITE),
        "1 for true": ({"ppo": 1}, ".ppo", "must be true or false"),
        "an unknown loss": ({"loss_fn": "dpo"}, ".loss_fn", "must be 'cispo' or 'ppo'"),
        "two losses": ({"loss_fn": "cispo", "ppo": True}, "", "contradict each other; send loss_fn alone"),
        "a balance above 1": ({"advantage_balance": 2}, ".advantage_balance", "between -1"),
        "a fraction of a token": ({"packed_sequence_length": 1.5}, ".packed_sequence_length", "must be a whole number"),
        "a length above the model's limit": (
            {"packed_sequence_length": 257},
            ".packed_sequence_length",
            "257 is above the model's limit of 256 tokens; lower it or leave it out",
        ),
        "an enormous length": ({"packed_sequence_length": 10**40}, ".packed_sequence_length", "at most 2147483647"),
        "a reference without a penalty": (
            {"kl_penalty_step_lag": 1},
            "",
            "kl_penalty_step_lag does nothing without a KL penalty; leave it out, or send a kl_penalty_coef above 0",
        ),
        "two references": (
            {"kl_penalty_coef": 0.1, "kl_penalty_step_lag": 1, "kl_penalty_reference_step": 0},
            "",
            "both choose the KL reference; send one of them",
        ),
        "a reference to a future version": (
            {"kl_penalty_coef": 0.1, "kl_penalty_reference_step": 7},
            ".kl_penalty_reference_step",
            "there is no version team/project/agent:step7; that step hasn't been trained yet",
        ),
        "an enormous step": (
            {"kl_penalty_coef": 0.1, "kl_penalty_reference_step": 10**30},
            ".kl_penalty_reference_step",
            "must be 0 (the untrained model) to 2147483647",
        ),
        "an enormous lag": (
            {"kl_penalty_coef": 0.1, "kl_penalty_step_lag": 10**30},
            ".kl_penalty_step_lag",
            "must be at least 1 and at most 2147483647",
        ),
        "a path on the server": (
            {"kl_penalty_coef": 0.1, "kl_ref_adapter_path": "../../etc/passwd"},
            ".kl_ref_adapter_path",
            "is neither entity/project/name:stepN nor checkpoints/<digest>",
        ),
        "an enormous path": (
            {"kl_penalty_coef": 0.1, "kl_ref_adapter_path": "x" * 10**6},
            ".kl_ref_adapter_path",
            "is neither entity/project/name:stepN nor checkpoints/<digest>",
        ),
        "another entity's version": (
            {"kl_penalty_coef": 0.1, "kl_ref_adapter_path": "rivals/project/agent:step1"},
            ".kl_ref_adapter_path",
            "entity 'team' has no model rivals/project/agent",
        ),
    }
)
def test_options(refused_job, sent, place, words):
    assert_says(refused_job({"experimental_config": sent}), f"body.experimental_config{place}", words)


@pytest.fixture
def refused_trajectory(refused_job):
    """Post a job with these changes to the last trajectory of the last of three groups; return its error."""

    def refused_trajectory(changes):
        *others, (one, other) = groups(2), (trajectory(0.0), changed(trajectory(1.0), changes))
        return refused_job({"trajectory_groups": [*others[0], {"trajectories": [one, other]}]})

    return refused_trajectory


LAST = "body.trajectory_groups.2.trajectories.1"
TOOL = {"type": "function", "function": {"name": "look"}}
EXCHANGES_ONLY = {"messages_and_choices": LEFT_OUT}


def exchange(**of_choice):
    sampled = {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "7"}, **of_choice}
    times = {"start_time": "2026-01-31T12:00:00Z", "end_time": "2026-01-31T12:00:01Z"}
    answer = {"model": "team/project/agent", "choices": [changed(sampled, {})]}
    return {**times, "request": {"model": "agent:step0"}, "response": answer}


EXCHANGE, EXCHANGE_OF_HALF = exchange(), exchange(token_ids=[300], finish_reason="half", prompt_token_ids=[1])
EXCHANGE_OF_TEXT = exchange(logprobs={"content": [{"token": "seven", "logprob": -0.5, "top_logprobs": []}]})
USER = {"role": "user", "content": "1 + 6 = ?"}
VERSION = "must be the step of a policy version, from 0 to 2147483647"
TIME = "must be a time as ISO 8601 writes it, like 2026-01-31T12:00:00Z"


@table(
    {
        "null for a reward": ({"reward": None}, "reward", "must be a number"),
        "a reward in quotes": ({"reward": "1.0"}, "reward", "must be a number"),
        "true for a reward": ({"reward": True}, "reward", "must be a number"),
        "an array of rewards": ({"reward": [1]}, "reward", "must be a number"),
        "a reward beyond float32": ({"reward": -1e31}, "reward", "must lie between -1e+30 and 1e+30"),
        "a reward of 400 digits": ({"reward": 10**400}, "reward", NOT_FINITE),
        "NaN": ({"reward": "@NaN@"}, "reward", NOT_FINITE),
        "minus infinity": ({"reward": "@-Infinity@"}, "reward", NOT_FINITE),
        "NaN in quotes": ({"reward": "NaN"}, "reward", "is NaN: a reward must be a finite number"),
        "infinity in quotes": ({"reward": "-Infinity"}, "reward", "is -Infinity: a reward must be a finite number"),
        "1e999": ({"reward": "@1e999@"}, "reward", NOT_FINITE),
        "1e999 under an unknown key": ({"note": {"a": [0, "@1e999@"]}}, "note.a.1", NOT_FINITE),
        "an array of metrics": ({"metrics": []}, "metrics", "must be an object"),
        "a metric in words": ({"metrics": {"length": "long"}}, "metrics.length", "must be a number, true or false"),
        "nested metadata": ({"metadata": {"a": [1]}}, "metadata.a", "must be a number, a string, true, false or null"),
        "NaN in metadata": ({"metadata": {"a": "@NaN@"}}, "metadata.a", NOT_FINITE),
        "a string of logs": ({"logs": "one"}, "logs", "must be an array"),
        "a number in logs": ({"logs": ["one", 2]}, "logs.1", "must be a string"),
        "a time in words": ({"start_time": "yesterday"}, "start_time", TIME),
        "a time beyond the calendar": ({"start_time": 1e300}, "start_time", TIME),
        "a fractional version": ({"initial_policy_version": 1.5}, "initial_policy_version", "must be a whole number"),
        "a negative version": ({"initial_policy_version": -5}, "initial_policy_version", VERSION),
        "an enormous version": ({"final_policy_version": 10**30}, "final_policy_version", VERSION),
        "an object of tools": ({"tools": {}}, "tools", "must be an array"),
        "a tool by name": ({"tools": ["look"]}, "tools.0", "must be an object"),
        "a tool without a name": (
            {"tools": [{"type": "function", "function": {}}]},
            "tools.0.function.name",
            MISSING,
        ),
        "exchanges beside turns": ({"exchanges": {"messages": [EXCHANGE]}}, "exchanges", "in one of the two forms"),
        "exchanges beside tools": (
            {"messages_and_choices": LEFT_OUT, "tools": [TOOL], "exchanges": {"messages": [EXCHANGE]}},
            "exchanges",
            "is sent beside tools",
        ),
        "a list of exchanges": ({**EXCHANGES_ONLY, "exchanges": [EXCHANGE]}, "exchanges", "must be an object"),
        "another protocol": (
            {**EXCHANGES_ONLY, "exchanges": {"embeddings": [EXCHANGE]}},
            "exchanges.embeddings",
            "isn't a protocol that can be trained",
        ),
        "an exchange without an answer": (
            {**EXCHANGES_ONLY, "exchanges": {"responses": [changed(EXCHANGE, {"response": LEFT_OUT})]}},
            "exchanges.responses.0.response",
            MISSING,
        ),
        "an exchange at no time": (
            {**EXCHANGES_ONLY, "exchanges": {"responses": [{**EXCHANGE, "end_time": "later"}]}},
            "exchanges.responses.0.end_time",
            TIME,
        ),
        "an exchange that is weighed": (
            {**EXCHANGES_ONLY, "exchanges": {"responses": [{**EXCHANGE, "weight": 2}]}},
            "exchanges.responses.0.weight",
            "isn't read here",
        ),
        "exchanges of another model": (
            {**EXCHANGES_ONLY, "exchanges": {"messages": [{**EXCHANGE, "request": {"model": "judge"}}]}},
            "exchanges",
            "No exchange is of the trained model team/project/agent: its 1 exchanges are of 'judge'",
        ),
        "an exchange without tokens": (
            {**EXCHANGES_ONLY, "exchanges": {"chat_completions": [EXCHANGE]}},
            "exchanges.chat_completions.0.response.choices.0.token_ids",
            "aren't known exactly; sample with return_token_ids=true",
        ),
        "an exchange with the tokens of text": (
            {**EXCHANGES_ONLY, "exchanges": {"chat_completions": [EXCHANGE_OF_TEXT]}},
            "exchanges.chat_completions.0.response.choices.0.token_ids",
            "aren't known exactly; sample with return_token_ids=true",
        ),
        "a spoilt choice of an exchange": (
            {**EXCHANGES_ONLY, "exchanges": {"chat_completions": [EXCHANGE_OF_HALF]}},
            "exchanges.chat_completions.0.response.choices.0.finish_reason",
            "send the exchange as it was captured",
        ),
        "turns under another name": ({"messages_and_choices": [], "messages": [USER]}, "messages", "isn't read"),
        "several rewards": ({"rewards": [1.0]}, "rewards", "it looks like reward"),
        "an array for the template": ({"chat_template_kwargs": []}, "chat_template_kwargs", "must be an object"),
        "an argument that isn't for the template": (
            {"chat_template_kwargs": {"tokenize": True}},
            "chat_template_kwargs.tokenize",
            "can't be set here; leave it out",
        ),
        "null for turns": ({"messages_and_choices": None}, "messages_and_choices", "must be an array"),
        "a string of turns": ({"messages_and_choices": "hi"}, "messages_and_choices", "must be an array"),
        "an empty history": (
            {"additional_histories": [{}]},
            "additional_histories.0.messages_and_choices",
            MISSING,
        ),
        "an unknown token in a further history": (
            {"additional_histories": [{"messages_and_choices": [USER, choice((300, 427))]}]},
            "additional_histories.0.messages_and_choices.1.token_ids.1",
            "token id 427 is outside the vocabulary of 427; send tokens that this model sampled",
        ),
    }
)
def test_trajectories(refused_trajectory, sent, place, words):
    assert_says(refused_trajectory(sent), f"{LAST}.{place}", words)


def said(content):
    return {"role": "user", "content": content}


def called(*calls):
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def function(**function):
    return {"id": "1", "type": "function", "function": function}


NEITHER = "must be a message whose role is one of developer, system, user, assistant, tool, function, or a choice"


@table(
    {
        "a number": (42, "", NEITHER),
        "null": (None, "", NEITHER),
        "an empty object": ({}, "", NEITHER),
        "no role": ({"content": "x"}, "", NEITHER),
        "an unknown role": ({"role": "oracle", "content": "x"}, ".role", NEITHER),
        "an array for a role": ({"role": ["user"], "content": "x"}, ".role", NEITHER),
        "no content": ({"role": "user"}, ".content", MISSING),
        "a number for content": (said(7), ".content", "must be a string or an array of parts"),
        "an object for content": (said({}), ".content", "must be a string or an array of parts"),
        "a part without a type": (said([{"text": "x"}]), ".content.0", "needs a `type`"),
        "a part of an unknown type": (
            said([{"type": "text", "text": "x"}, {"type": "video"}]),
            ".content.1.type",
            "must be one of 'text', 'image_url', 'input_audio', 'file'",
        ),
        "a text part without text": (said([{"type": "text"}]), ".content.0.text", MISSING),
        "an image": (
            said([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]),
            ".content.0",
            "content of type 'image_url' can't be trained; send text only",
        ),
        "an image in a system message": (
            {"role": "system", "content": [{"type": "image_url", "text": "x"}]},
            ".content.0.type",
            "must be 'text'",
        ),
        "a tool result without a call id": ({"role": "tool", "content": "7"}, ".tool_call_id", MISSING),
        "a string of calls": (called() | {"tool_calls": "look"}, ".tool_calls", "must be an array"),
        "a call without a type": (called({}), ".tool_calls.0", "needs a `type`"),
        "a call without arguments": (called(function(name="look")), ".tool_calls.0.function.arguments", MISSING),
        "arguments that aren't a string": (
            called(function(name="look", arguments="{}"), function(name="look", arguments={})),
            ".tool_calls.1.function.arguments",
            "must be a string",
        ),
    }
)
def test_messages(refused_trajectory, sent, place, words):
    error = refused_trajectory({"messages_and_choices": [USER, sent, choice()]})
    assert_says(error, f"{LAST}.messages_and_choices.1{place}", words)


def of_one_token(token="token_id:300", logprob=-0.5, **changes):
    """Return a choice without token_ids, whose logprobs name its only token."""
    entry = {"token": token, "logprob": logprob, "top_logprobs": [], **changes}
    return choice(token_ids=(), logprobs={"content": [entry]}) | {"token_ids": None}


TOKEN = ".logprobs.content.0.token"
UNKNOWN_TOKEN = "is outside the vocabulary of 427; send tokens that this model sampled"
NO_ENTRY = "doesn't name exactly one entry of the vocabulary; sample with return_token_ids=true"


@table(
    {
        "no message": ({"finish_reason": "stop", "index": 0}, ".message", MISSING),
        "a message in a string": (choice(message="7"), ".message", "must be an object"),
        "a choice with the role user": (choice(message=USER), ".message.role", "must be 'assistant'"),
        "no index": ({k: v for k, v in choice().items() if k != "index"}, ".index", MISSING),
        "an unknown end": (choice(finish_reason="tired"), ".finish_reason", "must be 'stop', 'length', 'tool_calls'"),
        "an array of logprobs": (choice(logprobs=[-0.5]), ".logprobs", "must be an object"),
        "logprobs without tokens": (choice(logprobs={"content": [-0.5]}), ".logprobs.content.0", "must be an object"),
        "null for a logprob": (of_one_token(logprob=None), ".logprobs.content.0.logprob", "must be a number"),
        "true for a logprob": (of_one_token(logprob=True), ".logprobs.content.0.logprob", "must be a number"),
        "an infinite logprob": (of_one_token(logprob="@-Infinity@"), ".logprobs.content.0.logprob", NOT_FINITE),
        "a probability": (
            of_one_token(logprob=0.5),
            ".logprobs.content.0.logprob",
            "logprob 0.5 is above 0; send natural logarithms of probabilities",
        ),
        "a logprob without a token": (
            choice(logprobs={"content": [{"logprob": -0.5, "top_logprobs": []}]}),
            TOKEN,
            MISSING,
        ),
        "an id beyond the vocabulary": (of_one_token("token_id:427"), TOKEN, f"token id 427 {UNKNOWN_TOKEN}"),
        "an id of 5000 digits": (of_one_token("token_id:" + "9" * 5000), TOKEN, NO_ENTRY),
        "an id in other digits": (of_one_token("token_id:\u0661"), TOKEN, NO_ENTRY),
        "a token of another model": (of_one_token("zebraque"), TOKEN, NO_ENTRY),
        "an enormous token": (of_one_token("z" * 10**5), TOKEN, NO_ENTRY),
        "bytes above 255": (
            of_one_token("a", bytes=[300]),
            ".logprobs.content.0.bytes",
            "bytes lie between 0 and 255; send the choice as the engine returned it",
        ),
        "a string of ids": (choice() | {"token_ids": "seven"}, ".token_ids", "must be an array"),
        "a fraction of an id": (choice() | {"token_ids": [300, 1.5]}, ".token_ids.1", "must be a whole number"),
        "a negative id": (choice() | {"token_ids": [-1, 2, 3]}, ".token_ids.0", f"token id -1 {UNKNOWN_TOKEN}"),
        "an enormous id": (choice() | {"token_ids": [1, 10**300, 3]}, ".token_ids.1", UNKNOWN_TOKEN),
        "fewer ids than logprobs": (
            choice() | {"token_ids": [300, 301]},
            ".token_ids",
            "it has 2 token_ids but 3 logprobs; send the choice as the engine returned it",
        ),
        "a string as the prompt": (choice(prompt_token_ids="1 + 6"), ".prompt_token_ids", "must be an array"),
        "an unknown token in the prompt": (
            choice(prompt_token_ids=[1, 9999]),
            ".prompt_token_ids.1",
            f"token id 9999 {UNKNOWN_TOKEN}",
        ),
        "no prompt": (
            choice(prompt_token_ids=[]),
            "",
            "no token precedes its first one, which therefore has no probability; send its prompt",
        ),
        "a version in words": (choice(policy_version="newest"), ".policy_version", "must be a whole number"),
        "an enormous version": (choice(policy_version=10**30), ".policy_version", VERSION),
    }
)
def test_choices(refused_trajectory, sent, place, words):
    error = refused_trajectory({"messages_and_choices": [USER, sent]})
    assert_says(error, f"{LAST}.messages_and_choices.1{place}", words)


def test_a_choice_before_every_message(refused_trajectory):
    error = refused_trajectory({"messages_and_choices": [choice(), USER]})
    assert_says(error, f"{LAST}.messages_and_choices.0", "send messages that the model's template accepts")


def test_reasoning_apart_from_content(refused_trajectory):
    reasoned = choice(message={"role": "assistant", "content": "7", "reasoning": "1 + 6"})
    error = refused_trajectory({"messages_and_choices": [USER, reasoned, USER, choice()]})
    words = "sample with return_token_ids=true and keep prompt_token_ids on each choice"
    assert_says(error, f"{LAST}.messages_and_choices.1", words)


@pytest.mark.parametrize("sent", [f"@{'[' * 5000}{']' * 5000}@", f"@{'9' * 5000}@", "@0x10@", "@.5@", "\ud800"])
def test_text_in_a_group_that_is_not_json(refused_trajectory, sent):
    assert_says(refused_trajectory({"metadata": {"note": sent}}), "body.trajectory_groups.2", "isn't JSON")


def test_groups_sent_twice(refused, model):
    body = {"model_id": model["id"], "trajectory_groups": groups(), "Trajectory_groups": groups()}
    error = refused(json.dumps(body).replace("Trajectory", "trajectory"))
    assert_says(error, "body", "has a key more than once; send each key once")


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_a_body_that_is_not_packed_as_it_says(refused, model, coding):
    body = text({"model_id": model["id"], "trajectory_groups": groups()})
    error = refused(body, **{"Content-Encoding": coding})
    assert_says(error, "body", f"isn't valid {coding}")
