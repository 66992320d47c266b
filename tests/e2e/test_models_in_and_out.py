"""A model with LoRA settings of its own trains; its version is exported, imported elsewhere, forked and trained on."""

import pytest
from helpers import inference_name, roll_out, train
from test_versions import TOLERANCE, answer

from tandem.client import Client, InvalidRequestError

LORA = {"r": 4, "alpha": 12, "target_modules": ["q_proj", "o_proj", "down_proj"], "seed": 11}


def test_a_version_leaves_the_service_comes_back_and_is_trained_on(service, http, tmp_path):
    openai = service.openai()
    with Client(service.url, service.key) as client:
        with pytest.raises(InvalidRequestError, match="above 32"):
            client.register_model("too-wide", project="tests", base_model="tandem/tiny", lora={"r": 64})
        source, target = (
            client.register_model(name, project="tests", base_model="tandem/tiny", lora=LORA, return_existing=False)
            for name in ("in-and-out", "imported")
        )
        model = {"id": source.id, "entity": source.entity, "project": source.project, "name": source.short_name}
        before = answer(openai, source.name)[1]
        train(http, model, roll_out(openai, inference_name(model)), learning_rate=5e-3)
        version, trained, _ = answer(openai, source.name)
        assert version == 1 and trained != pytest.approx(before, abs=TOLERANCE)
        exported = client.download_adapter(source, tmp_path / "adapter")
        imported = client.import_adapter(target, exported.directory)
        assert imported.step == 1 and imported.digest != exported.digest
        assert answer(openai, target.name)[:2] == (1, pytest.approx(trained, abs=TOLERANCE))
        fork = client.fork_model(source, "forked")
        assert answer(openai, fork.name)[:2] == (1, pytest.approx(trained, abs=TOLERANCE))
        for name, moved in (("forked", fork), ("imported", target)):
            again = model | {"id": moved.id, "name": name}
            events = train(http, again, roll_out(openai, inference_name(again)), learning_rate=5e-3)
            assert [event["type"] for event in events][-1] == "training_ended"
            assert not [event for event in events if event["type"] in ("engine_disagrees", "logprobs_rescored")]
            step, newest, _ = answer(openai, moved.name)
            assert step == 2 and newest != pytest.approx(trained, abs=TOLERANCE)
