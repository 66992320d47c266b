import math

import pytest
from wire_data import (
    ENGINE_RENDERS_OTHERWISE,
    EOS,
    as_offered,
    chat_tokenizer,
    choice,
    encode,
    group,
    history,
    load_tokenizer,
    packing_vectors,
    user,
    vector,
)

from tandem.rl.batch import build_sequences
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import TrajectoryError
from tandem.rl.tokens.chat_template import NOW
from tandem.rl.tokens.tokenizing import ChatTokenizer, TokenizedSequence, tokenize_history
from tandem.rl.trajectories import TrajectoryGroup

# Like Qwen3's template: it drops reasoning before the last user message, and trims content.
THINKING_TEMPLATE = """\
{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set content = m.content -%}
{%- if m.role == 'assistant' and loop.index0 < ns.last -%}
{%- set content = content.split('</think>')[-1] -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' + content.strip() + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}{%- if no_think -%}{{- '<think></think>' -}}{%- endif -%}
{%- endif -%}
"""


def tokenize(*items: dict, template: str | None = None, allow: bool = False, **extra) -> list[TokenizedSequence]:
    return tokenize_history(history(*items, **extra), chat_tokenizer(template), allow)


def prompt(text: str) -> list[int]:
    return encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def trained(sequence: TokenizedSequence) -> list[int]:
    return sequence.token_ids[sequence.loss_mask].tolist()


def refusal(*items: dict, template: str | None = None, allow: bool = False, **extra) -> TrajectoryError:
    with pytest.raises(TrajectoryError) as caught:
        tokenize_history(history(*items, **extra), chat_tokenizer(template), allow, place=(5, 6, 0))
    assert (caught.value.group, caught.value.trajectory) == (5, 6)
    return caught.value


TOKENIZED = [
    case
    for case in packing_vectors()
    if not case["quirk"] and "tokenized" in case["expected"] and case["name"] not in ENGINE_RENDERS_OTHERWISE
]


@pytest.mark.parametrize("case", TOKENIZED, ids=lambda case: case["name"])
def test_recorded_tokens_masks_logprobs_and_advantages(case):
    expected = case["expected"]["tokenized"]
    groups = [TrajectoryGroup.model_validate(body) for body in case["trajectory_groups"]]
    found = [
        s for of_group in build_sequences(groups, chat_tokenizer(), TrainingConfig(**case["config"])) for s in of_group
    ]
    assert len(found) == len(expected)
    for sequence, wanted in zip(found, expected, strict=True):
        assert all(getattr(sequence, index) == wanted[index] for index in ("group", "trajectory", "history"))
        assert sequence.token_ids.tolist() == wanted["token_ids"]
        assert sequence.loss_mask.int().tolist() == wanted["assistant_mask"]
        assert sequence.choice_offsets == tuple(wanted["choice_offsets"])
        assert sequence.prompt_length == wanted["prompt_length"]
        assert sequence.advantage == pytest.approx(wanted["advantage"], abs=1e-12)
        assert sequence.weight == pytest.approx(wanted["weight"], abs=1e-12)
        logprobs = [math.nan if x is None else x for x in wanted["logprobs"]]
        assert sequence.sampling_logprobs.tolist() == pytest.approx(logprobs, abs=0, nan_ok=True)


@pytest.mark.parametrize("name", sorted(ENGINE_RENDERS_OTHERWISE))
def test_prompts_are_those_of_the_engine_where_openpipe_art_renders_others(name):
    case = vector(name)
    groups = [TrajectoryGroup.model_validate(body) for body in case["trajectory_groups"]]
    [sequences] = build_sequences(groups, chat_tokenizer(), TrainingConfig())
    for sequence, recorded in zip(sequences, case["expected"]["tokenized"], strict=True):
        text = as_offered(chat_tokenizer().decode(recorded["token_ids"])).replace("start|>developer", "start|>system")
        assert chat_tokenizer().decode(sequence.token_ids.tolist()) == text
        assert len(trained(sequence)) == sum(recorded["assistant_mask"])


def test_a_tool_call_that_was_answered_stands_once_as_sampled():
    # openpipe-art 0.5.18 writes it twice: as sampled, and again by the template.
    case = vector("tool_call_then_answer")
    groups = [TrajectoryGroup.model_validate(body) for body in case["trajectory_groups"]]
    [sequences] = build_sequences(groups, chat_tokenizer(), TrainingConfig())
    for sequence, doubled in zip(sequences, case["expected"]["tokenized"], strict=True):
        sampled = groups[0].trajectories[sequence.trajectory].messages_and_choices[1].token_logprobs
        # The template's copy follows the sampled tokens and has the same length.
        end = sequence.choice_offsets[0] + len(sampled)
        once = doubled["token_ids"][:end] + doubled["token_ids"][end + len(sampled) :]
        assert sequence.token_ids.tolist() == encode(as_offered(chat_tokenizer().decode(once)))
        assert len(trained(sequence)) == sum(doubled["assistant_mask"])


def test_a_choice_without_logprobs_is_trained_when_allowed():
    # openpipe-art 0.5.18 raises.
    case = vector("allow_without_logprobs_choice")
    groups = [TrajectoryGroup.model_validate(body) for body in case["trajectory_groups"]]
    [sequences] = build_sequences(groups, chat_tokenizer(), TrainingConfig(**case["config"]))
    texts = [trajectory.messages_and_choices[1].message["content"] for trajectory in groups[0].trajectories]
    assert [trained(sequence) for sequence in sequences] == [encode(text) for text in texts]
    assert all(sequence.sampling_logprobs.isnan().all() for sequence in sequences)


def test_common_first_trained_tokens_are_not_shared():
    # In openpipe-art 0.5.18, the shared prompt includes common trained tokens without logprobs.
    case = vector("allow_without_logprobs_common_start")
    groups = [TrajectoryGroup.model_validate(body) for body in case["trajectory_groups"]]
    [sequences] = build_sequences(groups, chat_tokenizer(), TrainingConfig(**case["config"]))
    for sequence in sequences:
        assert sequence.prompt_length == sequence.loss_mask.tolist().index(True) - 1


def test_token_ids_of_the_choice_win_over_its_tokens():
    items = choice("yes", [88, EOS])
    items["logprobs"]["content"][0]["token"] = "whatever"
    [sequence] = tokenize(user("hi"), {**items, "token_ids": [89, EOS]})
    assert trained(sequence) == [89, EOS]
    assert sequence.sampling_logprobs[-2:].tolist() == [-1 / 8, -2 / 8]


def test_prompt_ids_of_the_choice_are_the_context():
    [sequence] = tokenize(user("hi"), choice("yes", prompt_token_ids=[1, 2, 3]))
    assert sequence.token_ids.tolist() == [1, 2, 3, *encode("yes"), EOS]


def test_turns_whose_prompt_continues_the_last_turn_are_one_sequence():
    first = choice("yes", prompt_token_ids=[1, 2])
    so_far = [1, 2, *encode("yes"), EOS]
    [sequence] = tokenize(user("a"), first, user("b"), choice("no", prompt_token_ids=[*so_far, 3]))
    assert sequence.token_ids.tolist() == [*so_far, 3, *encode("no"), EOS]
    assert sequence.choice_offsets == (2, len(so_far) + 1)


def test_a_prompt_that_tokenizes_an_earlier_turn_differently_starts_a_sequence():
    letters = [encode(letter)[0] for letter in "yes"]
    first, second = choice("yes", [*letters, EOS], prompt_token_ids=[1, 2]), [1, 2, *encode("yes"), EOS, 3]
    one, other = tokenize(user("a"), first, user("b"), choice("no", prompt_token_ids=second))
    assert one.token_ids.tolist() == [1, 2, *letters, EOS]
    assert other.token_ids.tolist() == [*second, *encode("no"), EOS]
    assert trained(other) == [*encode("no"), EOS]


def test_prompt_ids_and_rendering_can_alternate():
    context = prompt("a")
    [sequence] = tokenize(user("a"), choice("yes", prompt_token_ids=context), user("b"), choice("no"))
    [rendered] = tokenize(user("a"), choice("yes"), user("b"), choice("no"))
    assert sequence.token_ids.tolist() == rendered.token_ids.tolist()


def test_a_template_that_drops_thinking_splits_the_history():
    thoughtful = "<think>two</think>yes"
    one, other = tokenize(user("a"), choice(thoughtful), user("b"), choice("no"), template=THINKING_TEMPLATE)
    assert one.token_ids.tolist() == [*prompt("a"), *encode(thoughtful), EOS]
    after = encode("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n") + prompt("b")
    assert other.token_ids.tolist() == [*after, *encode("no"), EOS]
    assert trained(other) == [*encode("no"), EOS]


def test_a_template_that_keeps_the_turn_does_not_split():
    assert len(tokenize(user("a"), choice("yes"), user("b"), choice("no"), template=THINKING_TEMPLATE)) == 1


def test_a_tool_call_that_the_template_writes_differently_splits_the_history():
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at":"it"}'}}
    sampled = '\n<tool_call>{"arguments":{"at":"it"},"name":"look"}</tool_call>'
    turn = choice(sampled)
    turn["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
    one, other = tokenize(user("a"), turn, {"role": "tool", "tool_call_id": "1", "content": "x"}, choice("no"))
    assert trained(one) == [*encode(sampled), EOS]
    assert '"name": "look", "arguments": {"at":"it"}' in chat_tokenizer().decode(other.token_ids.tolist())


def test_splitting_keeps_the_weight_of_the_trajectory():
    items = [user("a"), choice("<think>two</think>yes"), user("b"), choice("no")]
    chat = chat_tokenizer(THINKING_TEMPLATE)
    [sequences] = build_sequences([group((1.0, items), (0.0, [user("a"), choice("no")]))], chat, TrainingConfig())
    one, other, _ = sequences
    assert (one.trajectory, other.trajectory) == (0, 0)
    assert one.advantage == other.advantage
    assert one.weight == other.weight == 1 / (one.num_trained_tokens + other.num_trained_tokens + 1e-6)


def test_a_sampled_eos_is_the_templates_and_a_cut_turn_gets_an_untrained_one():
    [whole] = tokenize(user("a"), choice("yes"), user("b"), choice("no"))
    [cut] = tokenize(user("a"), choice("yes", encode("yes")), user("b"), choice("no"))
    assert whole.token_ids.tolist() == cut.token_ids.tolist()
    assert whole.num_trained_tokens == cut.num_trained_tokens + 1


def test_template_arguments_reach_the_template():
    [sequence] = tokenize(user("a"), choice("no"), template=THINKING_TEMPLATE, chat_template_kwargs={"no_think": True})
    assert sequence.token_ids.tolist() == [*prompt("a"), *encode("<think></think>"), *encode("no"), EOS]


@pytest.mark.parametrize("content", ['{"at": 1}', "", "not json", "[1]"])
def test_tool_arguments_are_objects_for_templates_that_take_them(content):
    template = """\
{%- for m in messages -%}
{{- m.content -}}
{%- for call in m.tool_calls or [] -%}
{%- for key, value in call.function.arguments.items() -%}{{- key ~ '=' ~ value -}}{%- endfor -%}{%- endfor -%}
{%- endfor -%}"""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": content}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    [sequence] = tokenize(user("a"), message, choice("no"), template=template)
    expected = "aat=1" if content == '{"at": 1}' else "a"
    assert sequence.token_ids.tolist() == [*encode(expected), *encode("no"), EOS]


def test_parts_are_joined_for_templates_that_take_only_strings():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    [joined] = tokenize({"role": "user", "content": parts}, choice("no"), template=THINKING_TEMPLATE)
    assert joined.token_ids.tolist() == [*prompt("a\nb"), *encode("no"), EOS]


def test_vocabulary_strings_and_bytes_name_tokens_exactly():
    turn = choice("", [EOS])
    space_sat = encode(" sat")[0]
    turn["logprobs"]["content"] = [
        {"token": "Ġsat", "logprob": -1, "top_logprobs": []},
        {"token": "Ġsat", "logprob": -1, "top_logprobs": [], "bytes": list(b" sat")},
        {"token": " sat", "logprob": -1, "top_logprobs": [], "bytes": list(b" sat")},
    ]
    [sequence] = tokenize(user("a"), turn)
    assert trained(sequence) == [space_sat] * 3


@pytest.mark.parametrize(
    "token",
    [
        {"token": " sat"},  # not an entry of the vocabulary
        {"token": "", "bytes": []},
        {"token": "x", "bytes": [300]},
        {"token": "\ufffd", "bytes": [0xC3]},  # part of a character
        {"token": "token_id:427"},  # one above the vocabulary
        {"token": "token_id:-1"},
    ],
)
def test_tokens_that_name_no_entry_are_refused(token):
    turn = choice("", [EOS])
    turn["logprobs"]["content"] = [{"logprob": -1, "top_logprobs": [], "bytes": None, **token}]
    assert refusal(user("a"), turn).turn == 1


def test_the_vocabulary_may_be_larger_than_the_tokenizer():
    chat = ChatTokenizer(load_tokenizer(), vocab_size=512)
    [sequence] = tokenize_history(history(user("a"), choice("", [500])), chat)
    assert trained(sequence) == [500]


@pytest.mark.parametrize(("logprob", "kept"), [(-1000.0, -1000.0), (-1000.1, math.nan), (-math.inf, math.nan)])
def test_logprobs_that_say_nothing_are_unknown(logprob, kept):
    turn = choice("", [EOS])
    turn["logprobs"]["content"][0]["logprob"] = logprob
    [sequence] = tokenize(user("a"), turn)
    assert sequence.sampling_logprobs[-1].item() == pytest.approx(kept, nan_ok=True)


def test_a_history_without_trained_turns_gives_nothing():
    without = {**choice("yes"), "logprobs": None}
    assert tokenize(user("a"), without, {"role": "assistant", "content": "no"}) == []


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:a.png"}}]}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
REASONED = {**choice("yes"), "message": {"role": "assistant", "content": "yes", "reasoning": "two"}}


def with_token(token: str = "token_id:1", logprob: float = -0.7, **changes) -> dict:
    entry = {"token": token, "logprob": logprob, "top_logprobs": [], **changes}
    return {**choice("yes"), "logprobs": {"content": [entry]}}


@pytest.mark.parametrize(
    ("items", "place", "reason"),
    [
        ([user("a"), choice("yes", token_ids=[1])], "turn 1, token_ids", "1 token_ids but 3 logprobs"),
        ([user("a"), with_token(logprob=0.7)], "turn 1, logprobs.content.0.logprob", "above 0"),
        ([user("a"), with_token("token_id:427")], "turn 1, logprobs.content.0.token", "token id 427 is outside"),
        ([user("a"), with_token("token_id:" + "9" * 5000)], "turn 1, logprobs.content.0.token", "exactly one entry"),
        ([user("a"), with_token("\u0661" * 9)], "turn 1, logprobs.content.0.token", "exactly one entry"),
        ([user("a"), with_token("a", bytes=[300])], "turn 1, logprobs.content.0.bytes", "between 0 and 255"),
        ([user("a"), choice("no", prompt_token_ids=[])], "turn 1", "no token precedes"),
        ([user("a"), choice("no", prompt_token_ids=[1, 427])], "turn 1, prompt_token_ids.1", "token id 427 is outside"),
        ([IMAGE, choice("no")], "turn 0, content.0", "image_url"),
        ([user("a"), REASONED, user("b"), choice("no")], "turn 1", "turn 3"),
    ],
)
def test_what_is_not_exact_is_refused_with_place_reason_and_remedy(items, place, reason):
    error = refusal(*items)
    assert reason in error.reason
    assert len(error.reason) < 300
    assert str(error) == f"group 5, trajectory 6, {place}: {error.reason}"
    assert ".".join(map(str, error.location)).endswith(place.removeprefix("turn ").replace(", ", "."))


def test_reasoning_is_no_obstacle_when_the_prompt_is_known():
    one, other = tokenize(user("a"), REASONED, user("b"), choice("no", prompt_token_ids=[1, 2]))
    assert trained(one) == [*encode("yes"), EOS]
    assert other.token_ids.tolist() == [1, 2, *encode("no"), EOS]


def test_a_written_tool_call_is_not_trained_on_a_guess():
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert "tool call" in refusal(user("a"), message, allow=True).reason


def test_a_template_that_fails_is_a_reason():
    error = refusal(user("a"), choice("no"), template="{{ raise_exception('no users here') }}")
    assert "no users here" in error.reason


def test_template_arguments_may_not_replace_the_template():
    error = refusal(user("a"), choice("no"), chat_template_kwargs={"chat_template": "x"})
    assert error.location == ("trajectory_groups", 5, "trajectories", 6, "chat_template_kwargs", "chat_template")
    assert str(error).startswith("group 5, trajectory 6, chat_template_kwargs.chat_template: ")


def test_conversations_that_differ_in_the_order_of_keys_are_rendered_apart():
    """Templates print tools in the order of their keys, so 1 and 2 aren't the same prompt."""
    chat = ChatTokenizer(load_tokenizer("{{ tools | tojson }}{{ messages[0].content }}"))
    one, two = (
        {"type": "function", "function": {"name": "look", "parameters": parameters}}
        for parameters in ({"b": 1, "a": 2}, {"a": 2, "b": 1})
    )
    x, y = ([chat.template.prepare(user(text))] for text in "xy")
    texts = [chat.template.render(x, [tool], None) for tool in (one, two, one)]
    assert texts[0] == texts[2] != texts[1]
    assert chat.template.render(y, [one], None) != texts[0]


def test_a_turn_whose_text_has_other_tokens_is_not_the_context_of_the_next_one():
    """The engine tokenised the text of the turn again, so that its next prompt doesn't begin with the sampled ids."""
    letters = [encode(letter)[0] for letter in "yes"]
    one, other = tokenize(user("a"), choice("yes", [*letters, EOS]), user("b"), choice("no"))
    assert one.token_ids.tolist() == [*prompt("a"), *letters, EOS]
    assert trained(one) == [*letters, EOS]
    rendered = encode("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n") + prompt("b")
    assert other.token_ids.tolist() == [*rendered, *encode("no"), EOS]
    assert trained(other) == [*encode("no"), EOS]


def test_a_turn_that_ends_inside_a_character_is_not_the_context_of_the_next_one():
    """The engine's text has U+FFFD in place of the bytes, if anything, so its next prompt has other tokens."""
    first = encode("🙂")[:1]
    for written in ("", "\ufffd"):
        cut = {**choice("", first), "message": {"role": "assistant", "content": written}, "finish_reason": "length"}
        one, other = tokenize(user("a"), cut, user("b"), choice("no"))
        assert trained(one) == first
        assert trained(other) == [*encode("no"), EOS]
        assert chat_tokenizer().decode(other.token_ids.tolist()).count(written) > 0


DATED = "{{ strftime_now('%d %b %Y') ~ messages[0].content }}"


def test_a_template_that_writes_the_current_date_needs_the_date_of_sampling():
    error = refusal(user("a"), choice("no"), template=DATED)
    assert (error.turn, error.field) == (1, ())
    assert "current date" in error.reason and "prompt_token_ids" in error.reason
    assert "isn't a date" in refusal(user("a"), choice("no"), template=DATED, chat_template_kwargs={NOW: "x"}).reason
    [sequence] = tokenize(user("a"), choice("no"), template=DATED, chat_template_kwargs={NOW: "2026-11-30"})
    assert sequence.token_ids.tolist() == [*encode("30 Nov 2026a"), *encode("no"), EOS]
    [known] = tokenize(user("a"), choice("no", prompt_token_ids=[1, 2]), template=DATED)
    assert known.token_ids.tolist() == [1, 2, *encode("no"), EOS]


def test_a_model_without_a_chat_template_needs_prompt_ids():
    tokenizer = load_tokenizer()
    tokenizer.chat_template = None
    chat = ChatTokenizer(tokenizer)
    with pytest.raises(TrajectoryError, match=r"no chat template .* keep prompt_token_ids"):
        tokenize_history(history(user("a"), choice("no")), chat)
    [known] = tokenize_history(history(user("a"), choice("no", prompt_token_ids=[1, 2])), chat)
    assert known.token_ids.tolist() == [1, 2, *encode("no"), EOS]


def test_reasoning_that_the_engine_may_have_dropped_is_refused():
    """vLLM drops reasoning beside the keys that the OpenAI client writes into a message."""
    written = {"role": "assistant", "content": "yes", "reasoning": "two"}
    sdk = {**written, "refusal": None, "audio": None, "function_call": None}
    assert refusal(user("a"), sdk, user("b"), choice("no")).turn == 1
    assert len(tokenize(user("a"), written, user("b"), choice("no"))) == 1
