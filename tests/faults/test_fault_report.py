"""The page shows exactly what the harness measured."""

import json
import re

from fault_kinds import FAULTS
from fault_report import BEGIN, END, Campaign, Round, as_json, section, write_report
from paths import ROOT

PAGE = ROOT / "docs" / "reliability.md"


def a_round(what, jobs, silence, **counts):
    return Round("kill-x", what, 1, 0.0, 1.0, 2.0, jobs, 3, longest_silence_s=silence, longest_outage_s=1.4, **counts)


def test_rounds_of_a_kind_are_summed(tmp_path):
    rounds = (
        a_round("kill x", ("a", "b"), 3.2, lost=1),
        a_round("kill y", ("c",), 9.0),
        a_round("kill x", ("d",), 7.7),
    )
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n")
    write_report(as_json(Campaign(rounds, 4, 3, 100, ("Job a is lost.",)), "the command"), page)
    text = page.read_text()
    assert text.startswith(f"# Title\n\n{BEGIN}\n") and text.endswith(f"{END}\n\nThe rest.\n") and "old" not in text
    assert "| kill x | 2 | 3 | 1 | 0 | 0 | 8 s | 1 s |" in text
    assert "| **all** | 3 | 4 | 1 | 0 | 0 | 9 s | 1 s |" in text
    assert "Made by `the command`" in text and "broken promises: 1," in text
    assert json.loads(page.with_suffix(".json").read_text())["findings"] == ["Job a is lost."]


def test_the_documented_table_equals_the_measurements():
    measured = json.loads(PAGE.with_suffix(".json").read_text())
    [shown] = re.findall(f"{BEGIN}\n(.*?)\n{END}", PAGE.read_text(), re.DOTALL)
    assert shown == section(measured)
    assert {round["fault"] for round in measured["rounds"]} <= set(FAULTS)
