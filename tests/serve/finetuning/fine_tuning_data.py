"""Rows of training files, and graders."""

import json

CHAT = {"messages": [{"role": "user", "content": "1 + 6 = ?"}, {"role": "assistant", "content": "seven"}]}
PAIR = {
    "input": {"messages": [{"role": "user", "content": "1 + 6 = ?"}]},
    "preferred_output": [{"role": "assistant", "content": "seven"}],
    "non_preferred_output": [{"role": "assistant", "content": "six"}],
}
TASK = {"messages": [{"role": "user", "content": "1 + 6 = ?"}], "answer": "seven"}
EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
