"""Tool calls in a sampled text, in the format of Hermes: <tool_call>{"name": ..., "arguments": {...}}</tool_call>.

As in the service's engine: text before the first call is the content, and a text in which any call isn't valid is
content only.
"""

from __future__ import annotations

import json
import re
from typing import Any

_OPENING = "<tool_call>"
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


def assistant_message(text: str) -> dict[str, Any]:
    """Return the message of a sampled text. Ids of calls are those of their places."""
    before, opening, _ = text.partition(_OPENING)
    try:
        found = [_call(number, closed or open_) for number, (closed, open_) in enumerate(_CALL.findall(text))]
    except (ValueError, KeyError, TypeError):
        found = []
    if not opening or not found:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": before or None, "tool_calls": found}


def _call(number: int, written: str) -> dict[str, Any]:
    call = json.loads(written)
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return {"id": f"call_{number}", "type": "function", "function": function}
