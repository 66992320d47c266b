"""Rows to exact sequences: which tokens train, in which context, and what is refused with its place."""

import pytest
from wire_data import encode, load_tokenizer

from tandem.rl.supervised.rows import RowError, SupervisedRow
from tandem.rl.supervised.tokenizing import tokenize_row
from tandem.rl.tokens.tokenizing import ChatTokenizer, TokenizedSequence

# Like Qwen3's template: it drops reasoning before the last user message.
THINKING = """\
{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{{- m.content.split('</think>')[-1] if loop.index0 < ns.last else m.content -}}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# It ends the last turn in another way than earlier ones.
ENDS_LAST_TURN = """\
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content -}}
{%- if loop.last and m.role == 'assistant' -%}{{- '<|im_end|>' -}}{%- else -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
# Its generation prompt begins reasoning, which it doesn't render again.
PREFILLED = """\
{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}
"""


def tokenize(
    *messages: dict, turns: str = "all", template: str | None = None, **others: object
) -> list[TokenizedSequence]:
    row = SupervisedRow(messages=list(messages), **others)
    return tokenize_row(row, ChatTokenizer(load_tokenizer(template)), turns, line=7, place=(2, 1))


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def said(text: str, **others: object) -> dict:
    return {"role": "assistant", "content": text, **others}


def text_of(sequence: TokenizedSequence, trained: bool) -> list[str]:
    """Return the texts of the runs of tokens that are trained, or that aren't."""
    runs: list[list[int]] = [[]]
    for token, is_trained in zip(sequence.token_ids.tolist(), sequence.loss_mask.tolist(), strict=True):
        if is_trained == trained:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [load_tokenizer().decode(run) for run in runs if run]


def test_every_assistant_turn_is_trained_with_its_end_in_one_sequence():
    [sequence] = tokenize(user("1"), said("one"), user("2"), said("two"), user("unanswered"))
    assert text_of(sequence, trained=True) == ["one<|im_end|>\n", "two<|im_end|>\n"]
    whole = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
    whole += "<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n"
    assert sequence.token_ids.tolist() == encode(whole)
    assert (sequence.group, sequence.trajectory, sequence.advantage, sequence.weight) == (2, 1, 1.0, 1.0)
    assert sequence.sampling_logprobs.isnan().all()


def test_last_trains_the_last_turn_alone():
    [sequence] = tokenize(user("1"), said("one"), user("2"), said("two"), turns="last")
    assert text_of(sequence, trained=True) == ["two<|im_end|>\n"]


def test_results_of_tools_are_never_trained_and_the_tools_are_shown():
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    result = {"role": "tool", "tool_call_id": "c", "content": "SECRET"}
    [sequence] = tokenize(user("1+1"), said("", tool_calls=[call]), result, said("2"), tools=[tool])
    trained = "".join(text_of(sequence, trained=True))
    assert '"add"' in trained and trained.endswith("2<|im_end|>\n") and "SECRET" not in trained
    assert "SECRET" in "".join(text_of(sequence, trained=False))
    without_tools = tokenize(user("1+1"), said("", tool_calls=[call]), result, said("2"))
    assert without_tools[0].num_tokens < sequence.num_tokens


@pytest.mark.parametrize(("template", "first"), [(THINKING, "<think>a</think>one"), (ENDS_LAST_TURN, "one")])
def test_a_turn_whose_context_is_rendered_differently_has_a_sequence_of_its_own(template, first):
    messages = [user("1"), said(first), user("2"), said("<think>b</think>two")]
    sequences = tokenize(*messages, template=template)
    render = load_tokenizer(template).apply_chat_template
    for sequence, stop in zip(sequences, (1, 3), strict=True):
        prompt = render(messages[:stop], add_generation_prompt=True, tokenize=False)
        whole = render(messages[: stop + 1], tokenize=False)
        assert text_of(sequence, trained=False) == [prompt]
        assert text_of(sequence, trained=True) == [whole.removeprefix(prompt)]


def test_a_message_with_weight_0_is_context():
    [sequence] = tokenize(user("1"), said("one", weight=0), user("2"), said("two", weight=1))
    assert text_of(sequence, trained=True) == ["two<|im_end|>\n"]
    assert tokenize(user("1"), said("one", weight=0)) == []


def test_a_row_without_an_assistant_trains_nothing():
    assert tokenize(user("1")) == []


@pytest.mark.parametrize(
    ("row", "turns", "field"),
    [
        ([said("one"), user("2")], "last", ("messages", 1, "role")),
        ([user("1"), said("one", weight=0.5)], "all", ("messages", 1, "weight")),
        ([user("1"), said("one", loss_mask=[0])], "all", ("messages", 1, "loss_mask")),
        ([user("1"), said("one", reasoning_content="hmm")], "all", ("messages", 1, "reasoning_content")),
        ([user("1"), said(None, refusal="no")], "all", ("messages", 1, "refusal")),
        (
            [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
                said("one"),
            ],
            "all",
            ("messages", 0, "content", 0),
        ),
    ],
)
def test_what_is_not_exact_is_refused_with_its_place(row, turns, field):
    with pytest.raises(RowError, match="line 7") as caught:
        tokenize(*row, turns=turns)
    assert (caught.value.line, caught.value.field) == (7, field)


def test_calls_and_reasoning_that_the_template_leaves_out_are_refused():
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    with pytest.raises(RowError) as caught:
        tokenize(user("1"), said("", tool_calls=[call]), template=THINKING)
    assert caught.value.field == ("messages", 1, "tool_calls", 0)
    reasoned = THINKING.replace("{{- m.content.", "{{- m.reasoning_content or '' -}}{{- m.content.", 1)
    [sequence] = tokenize(user("1"), said("one", reasoning_content="hmm"), template=reasoned)
    assert text_of(sequence, trained=True) == ["hmmone<|im_end|>\n"]


def test_a_template_that_hides_the_sampled_tokens_is_refused():
    with pytest.raises(RowError, match="generation prompt") as caught:
        tokenize(user("1"), said("one"), template=PREFILLED)
    assert caught.value.field == ("messages", 1)


def test_arguments_of_the_template_apply_and_those_of_the_renderer_are_refused():
    template = THINKING.replace("assistant\\n", "assistant\\n{{ mode }}", 1)
    with pytest.raises(RowError, match="generation prompt"):  # it isn't in the rendered turn
        tokenize(user("1"), said("one"), template=template, chat_template_kwargs={"mode": "x"})
    with pytest.raises(RowError) as caught:
        tokenize(user("1"), said("one"), chat_template_kwargs={"tokenize": True})
    assert caught.value.field == ("chat_template_kwargs", "tokenize")
