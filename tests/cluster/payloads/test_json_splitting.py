import json
import random
import re

import pytest

from tandem.cluster.payloads.json_splitting import JsonSplitter

JOB = (
    '{"model_id": "a[\\"]", "items" : [ {"x": [1, {"y": "}],"}]} ,[2, 3], "\\\\", "\\u00e9,", 4.5 ],'
    ' "config": {"a": [1], "b": {}}}'
)


def split(text, size, **options):
    body = text if isinstance(text, bytes) else text.encode()
    splitter = JsonSplitter(**options)
    elements = [e for at in range(0, len(body), size) for e in splitter.feed(body[at : at + size])]
    return splitter, elements


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_envelope_and_elements_hold_what_the_object_holds(size):
    splitter, elements = split(JOB, size)
    whole = json.loads(JOB)
    assert [json.loads(element) for element in elements] == whole["items"]
    assert json.loads(splitter.envelope) == {**whole, "items": []}
    assert (splitter.num_arrays, splitter.is_complete) == (1, True)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_elements_can_be_passed_over(size):
    splitter, elements = split(JOB, size, with_elements=False)
    assert elements == []
    assert json.loads(splitter.envelope) == {**json.loads(JOB), "items": []}


def test_random_objects_come_apart_and_are_whole():
    pick = random.Random(5)

    def value(depth):
        match pick.randrange(6 if depth else 4):
            case 0:
                return pick.choice([None, True, -1.5e300, 12])
            case 1 | 2 | 3:
                return "".join(pick.choice('ab"\\{}[],:\né🙂') for _ in range(pick.randrange(6)))
            case 4:
                return [value(depth - 1) for _ in range(pick.randrange(4))]
            case _:
                return {value(0) if depth % 2 else "k": value(depth - 1) for _ in range(pick.randrange(3))}

    for _ in range(300):
        whole = {f"key {n} [": value(4) for n in range(pick.randrange(4))}
        text = json.dumps(whole, ensure_ascii=pick.random() < 0.5, indent=pick.choice([None, 1]))
        splitter, elements = split(text, pick.randrange(1, 40))
        whole = json.loads(text)
        arrays = [v for v in whole.values() if isinstance(v, list)]
        assert json.loads(splitter.envelope) == {k: [] if isinstance(v, list) else v for k, v in whole.items()}
        assert [json.loads(element) for element in elements] == [item for array in arrays for item in array]
        assert splitter.is_complete


@pytest.mark.parametrize(
    ("text", "envelope", "elements"),
    [
        ('{"a": [1,,2]}', '{"a": []}', ["1", "", "2"]),
        ('{"a": [1,]}', '{"a": []}', ["1", ""]),
        ('{"a": [,]}', '{"a": []}', ["", ""]),
        ('{"a": [ ]}', '{"a": []}', []),
        ('{"a": [{]}, 2]}', '{"a": [}, 2]}', ["{]"]),
        ('{"a": [1}', '{"a": [}', ["1"]),
        ('{"a": [1], "b": [2]', '{"a": [], "b": []', ["1", "2"]),
        ('{"a": [1', '{"a": [', []),
        ('{"a": ["1]}', '{"a": [', []),
        ('{"a": []} [1]', '{"a": []} [1]', []),
        ("[1, [2]]", "[1, [2]]", []),
        ('"[1]"', '"[1]"', []),
        ("7", "7", []),
        ("", "", []),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_malformed_stays_in_a_part(text, envelope, elements, size):
    splitter, got = split(text, size)
    assert splitter.envelope.decode() == envelope
    assert [element.decode() for element in got] == elements


@pytest.mark.parametrize("text", ["", '{"a": [1', '{"a": "', '{"a": []', "7"])
def test_a_body_that_ends_too_early_is_not_complete(text):
    assert not split(text, 3)[0].is_complete


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2, 3], oops}',
        '{"a": [1,\n 2, 3],\n "b": oops}',
        '{"a": [1],\n "b": [2, 2],\n "c" 5}',
        '{"a": [1, 2, 3]',
        '{"a": [1, 2, 3',
    ],
)
def test_a_place_in_the_envelope_is_found_in_the_body(text):
    splitter, _ = split(text, 4)
    error = json_error(bytes(splitter.envelope))
    line, column = map(int, re.search(r"line (\d+) column (\d+)", error).groups())
    found = splitter.offset(line, column)
    expected = json_error(text.encode())
    line, column = map(int, re.search(r"line (\d+) column (\d+)", expected).groups())
    assert found == sum(len(before) + 1 for before in text.split("\n")[: line - 1]) + column - 1


def json_error(raw):
    from pydantic_core import from_json

    with pytest.raises(ValueError) as error:
        from_json(raw)
    return str(error.value)


def test_a_place_before_the_first_array_is_the_same_in_both():
    splitter, _ = split('{"model": oops, "a": [1]}', 100)
    assert splitter.offset(1, 11) is None
