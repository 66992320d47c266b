"""Whether a chat template takes the content of a message as a list of parts or as a string, by vLLM's rule.

The engine passes parts to a template that loops over the content of its messages, and a string to any other. It decides
that from the syntax tree of the template, so the same question is asked of the same tree here: a template may render
parts and strings differently, and its prompts must be those of the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import nodes


@lru_cache(maxsize=32)
def takes_parts(chat_template: str) -> bool:
    """Return True if the engine passes content as a list of parts to this template.

    A tree that vLLM's rule can't read, such as one with a loop over pairs, counts as a template that takes strings.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        tree = _compile_jinja_template(chat_template).environment.parse(chat_template)
        return next(_loops_over_content(tree), None) is not None
    except Exception:  # jinja's, or an unexpected tree: vLLM catches all of them too
        return False


def _loops_over_content(tree: nodes.Template) -> Iterator[nodes.For]:
    """Yield the loops over a message's content, in a template or through a parameter of one of its macros."""
    from jinja2 import nodes

    messages = list(_names_of_messages(tree))
    in_macros, parameters = _loops_in_macros(tree, messages)
    for loop in tree.find_all(nodes.For):
        named = loop.iter.name if isinstance(loop.iter, nodes.Name) else None
        if (
            any(_reads(loop.iter, name, "content") for name in messages)
            or named in parameters.get(id(loop), ())
            or (named == "content" and id(loop) not in in_macros)
        ):
            assert isinstance(loop.target, nodes.Name)
            yield loop


def _loops_in_macros(tree: nodes.Template, messages: list[str]) -> tuple[set[int], dict[int, set[str]]]:
    """Return the loops inside macros and, for each of them, the macro's parameters that get a message's content."""
    from jinja2 import nodes

    in_macros: set[int] = set()
    parameters: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        names = [argument.name for argument in macro.args]
        calls = [
            call
            for call in tree.find_all(nodes.Call)
            if isinstance(call.node, nodes.Name) and call.node.name == macro.name
        ]
        given = [(name, value) for call in calls for name, value in zip(names, call.args, strict=False)]
        given += [(word.key, word.value) for call in calls for word in call.kwargs if word.key in names]
        filled = {name for name, value in given if any(_reads(value, message, "content") for message in messages)}
        for loop in macro.find_all(nodes.For):
            in_macros.add(id(loop))
            if filled:
                parameters[id(loop)] = filled
    return in_macros, parameters


def _names_of_messages(tree: nodes.Template) -> Iterator[str]:
    """Yield the loop variables that stand for a message."""
    from jinja2 import nodes

    lists = list(_names_of(tree, "messages"))
    for loop in tree.find_all(nodes.For):
        if any(_reads(loop.iter, name) for name in lists):
            assert isinstance(loop.target, nodes.Name)
            yield loop.target.name


def _names_of(tree: nodes.Template, variable: str) -> Iterator[str]:
    """Yield the names that stand for a variable: its own, and those it is assigned to."""
    from jinja2 import nodes

    yield variable
    related = deque([variable])
    while related:
        name = related.popleft()
        for assignment in tree.find_all(nodes.Assign):
            if _reads(assignment.node, name):
                assert isinstance(assignment.target, nodes.Name)
                yield assignment.target.name
                if assignment.target.name != name:
                    related.append(assignment.target.name)


def _reads(node: nodes.Node | None, variable: str, key: str | None = None) -> bool:
    """True if the expression is the variable, or its attribute `key`, perhaps filtered or sliced."""
    from jinja2 import nodes

    if isinstance(node, (nodes.Filter, nodes.Test)):
        return node.node is not None and _reads(node.node, variable, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _reads(node.node, variable, key)
    if key is None:
        return _is_variable(node, variable)
    if isinstance(node, nodes.Getitem):
        return _is_variable(node.node, variable) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and _is_variable(node.node, variable) and node.attr == key


def _is_variable(node: nodes.Node | None, variable: str) -> bool:
    from jinja2 import nodes

    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == variable
