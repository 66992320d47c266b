"""Task files: the shipped ones are valid, and mistakes are reported with their place."""

import re

import pytest
from paths import ROOT
from pydantic import BaseModel

from tandem.cluster.config import TandemConfig
from tandem.runs.config import TaskConfig, load_task
from tandem.runs.errors import TaskFileError
from tandem.runs.run import plan
from tandem.runs.sampling import RESERVED_SAMPLING

EXAMPLES = sorted((ROOT / "examples" / "train").glob("*.yaml"))
DOCS = (ROOT / "docs" / "train.md").read_text()
SMALLEST = "name: a\nenvironment: {class: tandem.rl.environments.toy:Largest}\ntraining: {jobs: 3}\n"


@pytest.fixture
def load(tmp_path):
    def write(text):
        path = tmp_path / "task.yaml"
        path.write_text(text)
        return load_task(path)

    return write


def fields(model: type[BaseModel], prefix: str = "") -> dict[str, object]:
    """Return all options by dotted name."""
    found = {}
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        section = next(
            (t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_section(t)), None
        )
        if section and section.__module__ == TaskConfig.__module__:
            found |= fields(section, f"{path}.")
        else:
            found[path] = field
    return found


def is_section(type_) -> bool:
    return isinstance(type_, type) and issubclass(type_, BaseModel)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_shipped_task_is_valid_and_has_its_environment(path):
    planned = plan(path)
    assert len(planned.train_tasks) and len(planned.eval_tasks)
    assert path.stem == planned.task.name


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "services").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_service_is_valid(path):
    TandemConfig.load(path)


def test_examples_are_found():
    assert {"largest.yaml", "own_environment.yaml"} <= {path.name for path in EXAMPLES}


def test_every_option_is_documented_with_its_default_and_no_other_is():
    options = fields(TaskConfig)
    section = DOCS.split("## All options")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*?) ?\| (.*?) \|$", section, re.MULTILINE)
    table = {name: default for name, default, _ in rows}
    assert sorted(table) == sorted(options)
    assert {name: text for name, _, text in rows} == {name: field.description for name, field in options.items()}
    for name, field in options.items():
        if field.is_required():
            assert table[name] == "required", name
        elif isinstance(field.default, bool | int | float | str):
            assert (
                table[name] == f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
            )


def test_every_option_has_a_description():
    assert [name for name, field in fields(TaskConfig).items() if not field.description] == []


def test_tasks_in_the_documentation_are_valid(load):
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    assert blocks
    for block in blocks:
        load(block if "name:" in block else SMALLEST + block)


def test_defaults_are_those_of_a_run_with_some_overlap(load):
    task = load(SMALLEST)
    assert task.training.max_policy_lag == 1
    assert task.evaluation is None
    assert task.model_name == "a"
    assert task.training.experimental_config.model_dump(exclude_none=True) == {}


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.001", "1.0e-3", "+1e-3"])
def test_numbers_can_be_written_in_any_notation(load, number):
    text = SMALLEST.replace("{jobs: 3}", f"{{jobs: 3, experimental_config: {{learning_rate: {number}}}}}")
    assert load(text).training.experimental_config.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rollouts: {groupsize: 8}", r"rollouts\.groupsize"),
        ("rollouts: {group_size: 1}", r"rollouts\.group_size"),
        ("rollouts: {sampling: {n: 4}}", r"rollouts\.sampling: .*\bn\b"),
        (
            "evaluation: {sampling: {temperature: 1}}",
            r"evaluation\.sampling: .*temperature",
        ),
        ("rollouts: {temperature: -1}", r"rollouts\.temperature"),
        ("rollouts: {temperature: 2.5}", r"rollouts\.temperature"),
        ("rollouts: {temperature: .nan}", r"rollouts\.temperature"),
        ("evaluation: {temperature: 3}", r"evaluation\.temperature"),
        ("rollouts: {max_tokens: 0}", r"rollouts\.max_tokens"),
        ("rollouts: {sampling: {top_p: 0}}", r"rollouts\.sampling\.top_p"),
        ("rollouts: {sampling: {top_k: -2}}", r"rollouts\.sampling\.top_k"),
        ("rollouts: {sampling: {min_p: 1.1}}", r"rollouts\.sampling\.min_p"),
        ("rollouts: {sampling: {repetition_penalty: 0}}", r"rollouts\.sampling\.repetition_penalty"),
        ("rollouts: {sampling: {presence_penalty: 3}}", r"rollouts\.sampling\.presence_penalty"),
        ("rollouts: {sampling: {seed: 9223372036854775808}}", r"rollouts\.sampling\.seed"),
        ("rollouts: {sampling: {stop: [a, b, c, d, e]}}", r"rollouts\.sampling\.stop"),
        ("rollouts: {sampling: {stop: ['']}}", r"rollouts\.sampling\.stop"),
        ("rollouts: {sampling: {logprobs: false}}", r"rollouts\.sampling: .*logprobs"),
        ("rollouts: {sampling: {return_token_ids: false}}", r"rollouts\.sampling: .*return_token_ids"),
        ("rollouts: {sampling: {max_completion_tokens: 3}}", r"rollouts\.sampling: .*max_completion_tokens"),
        ("rollouts: {sampling: {use_beam_search: true}}", r"rollouts\.sampling: .*use_beam_search"),
        ("rollouts: {sampling: {top_pp: 0.9}}", r"rollouts\.sampling\.top_pp.*top_p\b"),
        ("rollouts: {max_tokens: 4, sampling: {min_tokens: 5}}", r"rollouts: .*min_tokens"),
        ("rollouts: {sampling: 7}", r"rollouts\.sampling"),
        ("service: {url: 'http://a', config: b.yaml}", r"service: .*config"),
        ("service: {url: localhost}", r"service\.url"),
        ("model: {name: a/b}", r"model\.name"),
        ("seed: {}", r"seed"),
    ],
)
def test_a_mistake_is_reported_with_its_place(load, line, said):
    with pytest.raises(TaskFileError, match=said):
        load(SMALLEST + line)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ("{jobs: 0}", r"training\.jobs"),
        ("{}", r"training\.jobs"),
        ("{jobs: 3, max_policy_lag: -1}", r"training\.max_policy_lag"),
        ("{jobs: 3, experimental_config: {loss: ppo}}", r"training\.experimental_config\.loss"),
        ("{jobs: 3, experimental_config: {learning_rate: -1}}", r"learning_rate"),
        ("{jobs: 3, experimental_config: {loss_fn: ppo, ppo: false}}", r"experimental_config"),
    ],
)
def test_a_mistake_in_training_is_reported_with_its_place(load, training, said):
    with pytest.raises(TaskFileError, match=said):
        load(SMALLEST.replace("{jobs: 3}", training))


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "name: a"])
def test_other_files_are_rejected(load, text):
    with pytest.raises(TaskFileError):
        load(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TaskFileError, match=r"missing\.yaml"):
        load_task(tmp_path / "missing.yaml")


def test_an_environment_that_cant_be_created_is_reported(task_file):
    with pytest.raises(TaskFileError, match="Nothing"):
        plan(task_file("Nothing"))
    with pytest.raises(TaskFileError, match="NotComplete"):
        plan(task_file("NotComplete"))


@pytest.mark.parametrize("fault", ["generator", "nothing", "empty", "raises KeyError"])
def test_tasks_that_arent_a_sequence_are_reported(task_file, fault):
    with pytest.raises(TaskFileError, match="BadTasks"):
        plan(task_file("BadTasks", {"fault": fault}))


def test_reserved_fields_are_what_requests_set():
    assert "model" in RESERVED_SAMPLING and "temperature" not in RESERVED_SAMPLING
