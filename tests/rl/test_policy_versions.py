import subprocess
import sys

from wire_data import choice, user

from tandem.rl.policy_versions import tag_policy_versions


def test_the_first_and_the_last_turn_tag_the_trajectory():
    turns = [user("a"), choice("b", policy_version=3), user("c"), choice("d", policy_version=5)]
    trajectory = {"messages_and_choices": turns, "reward": 1.0}
    assert tag_policy_versions(trajectory) == {**trajectory, "initial_policy_version": 3, "final_policy_version": 5}
    assert set(trajectory) == {"messages_and_choices", "reward"}, "the given trajectory must stay unchanged"


def test_version_0_is_a_version():
    tagged = tag_policy_versions({"messages_and_choices": [choice("b", policy_version=0)], "reward": 0.0})
    assert (tagged["initial_policy_version"], tagged["final_policy_version"]) == (0, 0)


def test_tags_stay_and_unknown_versions_add_none():
    own = {"messages_and_choices": [choice("b", policy_version=4)], "reward": 0.0, "initial_policy_version": 2}
    assert tag_policy_versions(own) == {**own, "final_policy_version": 4}
    unknown = {"messages_and_choices": [user("a"), choice("b")], "reward": 0.0}
    assert tag_policy_versions(unknown) == unknown


def test_importing_it_loads_nothing_heavy():
    code = "import sys, tandem.rl.policy_versions; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
