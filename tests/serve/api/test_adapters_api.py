"""Download the adapter of a version, import one as the next version, and register models with LoRA settings."""

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, load_file, save
from serve_fakes import Trials

from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY, LoraLimits
from tandem.cluster.errors import VersionNotFiniteError
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.preparation import PreparationWorker
from tandem.rl.models.lora.adapter import adapter_config
from tandem.rl.settings import LoraSettings
from tandem.rl.version_probe import VersionProbe
from tandem.serve.keys import create_key

MODELS = "/v1/preview/models"
SMALL = {"r": 2, "alpha": 6, "target_modules": ["q_proj", "v_proj"], "seed": 5}
LORA = LoraSettings.model_validate(SMALL)
BASE_CONFIG = TINY.model_copy(update={"lora_limits": LoraLimits(max_r=16)})


@pytest.fixture
def trials():
    return Trials()


@pytest.fixture
def services(services, trials):
    artifacts = services.artifacts
    return replace(
        services,
        config=services.config.model_copy(update={"base_models": (BASE_CONFIG,)}),
        preparation=PreparationWorker({TINY.name: ResolvedBaseModel(BASE_CONFIG)}, artifacts),
        trials=trials,
    )


@pytest.fixture
def register(http):
    def register(name="small", **fields):
        body = {"project": "project", "name": name, "base_model": TINY.name, **fields}
        return http.post(MODELS, json=body)

    return register


@pytest.fixture
def small(register):
    """A model of rank 2."""
    return register(lora=SMALL).json()


@pytest.fixture
def tensors(services, store, small):
    """The tensors of an adapter with its settings, none of them zero."""
    digest = store.versions.resolve("team", "project", "small", 0).digest
    zero = load_file(services.artifacts.pull_adapter(digest) / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(tensor.shape, generator=generator) * 0.05 for name, tensor in zero.items()}


def archive(tensors, config=None, **others):
    files = {
        "adapter_config.json": json.dumps(adapter_config(LORA) if config is None else config).encode(),
        "adapter_model.safetensors": tensors if isinstance(tensors, bytes) else save(tensors),
        **others,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            if content is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def send(http, small):
    def send(body, model=small, key=None, kind="application/x-tar", **params):
        headers = {"content-type": kind, **({"idempotency-key": key} if key else {})}
        return http.post(f"{MODELS}/{model['id']}/versions", content=body, headers=headers, params=params)

    return send


def refused(response, status=422):
    assert response.status_code == status, response.text
    return response.json()["error"]


# LoRA settings


def test_a_model_has_the_settings_that_it_asks_for_and_the_rest_from_its_base(http, register, small, store, services):
    assert small["lora"] == SMALL and small["origin"] is None and small["step"] == 0
    other = register("other", lora={"r": 4}).json()
    assert other["lora"] == {**TINY.lora.model_dump(mode="json"), "r": 4}
    plain = register("plain").json()
    assert plain["lora"] == TINY.lora.model_dump(mode="json")
    assert http.get(f"{MODELS}/{small['id']}").json()["lora"] == SMALL
    digests = {store.versions.resolve("team", "project", name, 0).digest for name in ("small", "other", "plain")}
    assert len(digests) == 3
    again = register("again", lora=SMALL).json()
    found = store.versions.resolve("team", "project", "again", None)
    assert found.digest == store.versions.resolve("team", "project", "small", None).digest, "the same version 0"
    assert again["id"] != small["id"]
    assert load_file(services.artifacts.pull_adapter(found.digest) / "adapter_model.safetensors").keys()


@pytest.mark.parametrize(
    ("lora", "place", "said"),
    [
        ({"r": 17}, "body.lora.r", "above 16"),
        ({"target_modules": ["q_proj", "nonsense"]}, "body.lora.target_modules", "nonsense can't be adapted"),
        ({"target_modules": ["lm_head"]}, "body.lora.target_modules", "lm_head"),
        ({"r": 0}, "body.lora.r", "greater than"),
        ({"rank": 4}, "body.lora.rank", "r"),
        ({"alpha": 1e9}, "body.lora.alpha", "65536"),
    ],
)
def test_settings_beyond_the_limits_are_refused_with_the_field_and_the_limit(register, store, lora, place, said):
    error = refused(register("wrong", lora=lora))
    assert error["param"] == place and said in error["message"]
    assert store.models.find("team", "project", "wrong") is None


def test_a_model_that_exists_is_returned_only_with_the_same_settings(register, small):
    assert register(lora=SMALL, return_existing=True).json()["id"] == small["id"]
    assert register(return_existing=True).json()["id"] == small["id"]
    assert refused(register(lora={**SMALL, "r": 4}, return_existing=True), 409)["param"] == "lora"
    assert refused(register(lora={"seed": 0}, return_existing=True), 409)["param"] == "lora"
    plain = register("plain").json()
    same = {"target_modules": list(TINY.lora.target_modules), "r": TINY.lora.r}
    assert register("plain", lora=same, return_existing=True).json() == plain
    assert refused(register("plain", lora=SMALL, return_existing=True), 409)["param"] == "lora"


# Import


def test_an_import_is_the_next_version_with_exactly_these_weights(http, send, small, tensors, services, store, trials):
    version = send(archive(tensors), step=3).json()
    assert version["step"] == 3 and trials.tried == [version["digest"]]
    directory = services.artifacts.pull_checkpoint(version["digest"])
    assert all(
        torch.equal(tensor, tensors[name])
        for name, tensor in load_file(directory / "adapter_model.safetensors").items()
    )
    assert VersionProbe.of_checkpoint(directory).logprobs == trials.logprobs, "engines must have the learners' numbers"
    assert store.versions.resolve("team", "project", "small", None).digest == version["digest"]
    [checkpoint] = http.get(f"{MODELS}/{small['id']}/checkpoints").json()["data"]
    assert checkpoint["origin"]["kind"] == "import" and checkpoint["has_optimizer"] is False
    assert http.get(f"{MODELS}/{small['id']}").json()["origin"] == {"kind": "import", "step": 3}
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    later = send(archive(half, **{"README.md": b"a card"})).json()
    assert later["step"] == 4
    stored = load_file(services.artifacts.pull_checkpoint(later["digest"]) / "adapter_model.safetensors")
    assert all(torch.equal(tensor, half[name].float()) for name, tensor in stored.items())


def test_a_repeated_import_makes_no_second_version(send, small, tensors, services):
    first, other = archive(tensors), archive({name: tensor * 2 for name, tensor in tensors.items()})
    one = send(first, key="k").json()
    assert send(first, key="k").json() == one and send(first).json() == one
    assert refused(send(other, key="k"), 409)["code"] == "idempotency_key_reused"
    two = send(other).json()
    assert (one["step"], two["step"]) == (1, 2)
    assert send(first, key="k").json() == one, "also later"
    assert send(first).json()["step"] == 3, "an earlier version may return"
    assert refused(send(first, key="new", step=3))["param"] == "query.step"
    assert len(list(services.artifacts.checkpoints_dir.iterdir())) == 1 + 3


def changed(**fields):
    return {**adapter_config(LORA), **fields}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (changed(use_dora=True), "use_dora"),
        (changed(use_rslora=True), "use_rslora"),
        (changed(rank_pattern={"q_proj": 4}), "rank_pattern"),
        (changed(alpha_pattern={"q_proj": 4}), "alpha_pattern"),
        (changed(modules_to_save=["lm_head"]), "modules_to_save"),
        (changed(bias="all"), "bias"),
        (changed(lora_bias=True), "lora_bias"),
        (changed(layers_to_transform=[0]), "layers_to_transform"),
        (changed(init_lora_weights="pissa"), "init_lora_weights"),
        (changed(something_new=1), "something_new"),
        (changed(peft_type="LOHA"), "peft_type"),
        (changed(target_modules="all-linear"), "target_modules"),
        (changed(target_modules=["q_proj"]), "target_modules"),
        (changed(target_modules=["q_proj", "v_proj", "k_proj"]), "target_modules"),
        (changed(target_parameters=["experts.down_proj"]), "target_parameters"),
        (changed(r=3), "r"),
        (changed(r="2"), "r"),
        (changed(r=2.5), "r"),
        (changed(r=True), "r"),
        (changed(lora_alpha=5), "lora_alpha"),
        (changed(lora_alpha=None), "lora_alpha"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_that_computes_something_else_is_refused_by_name(send, tensors, small, store, config, field):
    error = refused(send(archive(tensors, config)))
    assert (error["code"], error["param"]) == ("invalid_adapter", f"body.adapter_config.json.{field}")
    assert not store.versions.page(small["id"], "team", 10)


def test_a_configuration_with_what_peft_writes_besides_is_accepted(send, tensors):
    config = changed(base_model_name_or_path="somewhere/else", lora_dropout=0.1, peft_version="0.1", new_option=None)
    assert send(archive(tensors, config)).status_code == 200


def test_whole_names_of_modules_are_those_of_all_layers(send, tensors):
    """As PEFT writes them for "all-linear"."""
    names = [
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name
    ]
    assert send(archive(tensors, changed(target_modules=names))).status_code == 200
    first = {name: tensor for name, tensor in tensors.items() if ".layers.0." in name}
    assert "is missing" in refused(send(archive(first, changed(target_modules=names[:2]))))["message"]


def spoilt(tensors, name, change):
    return {**tensors, name: change(tensors[name])}


def test_weights_that_do_not_fit_are_refused_by_name(send, tensors, services, trials):
    name, other = sorted(tensors)[:2]
    without = {key: tensor for key, tensor in tensors.items() if key != name}
    nan = spoilt(tensors, name, lambda t: t.index_fill(0, torch.tensor([0]), float("nan")))
    cases = {
        "is missing": (without, name),
        "isn't a tensor": (
            {**tensors, "base_model.model.lm_head.weight": torch.zeros(2)},
            "base_model.model.lm_head.weight",
        ),
        "has shape": (spoilt(tensors, other, lambda t: t[:, :1].contiguous()), other),
        "has dtype": (spoilt(tensors, name, lambda t: t.double()), name),
        "aren't finite": (nan, name),
    }
    for said, (wrong, place) in cases.items():
        error = refused(send(archive(wrong)))
        assert said in error["message"] and error["param"] == f"body.adapter_model.safetensors.{place}"
    assert "safetensors" in refused(send(archive(b"\x80\x04pickle")))["message"]
    assert trials.tried == [] and len(list(services.artifacts.checkpoints_dir.iterdir())) == 1


def test_archives_with_anything_else_are_refused(send, tensors, services, tmp_path):
    config = json.dumps(adapter_config(LORA)).encode()
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as tar:
        entry = tarfile.TarInfo("adapter_model.safetensors")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    cases = {
        "isn't an uncompressed tar": b"no archive, but text of some length",
        "no adapter_model.safetensors": archive(tensors, **{"adapter_model.safetensors": None}),
        "may be a pickle": archive(tensors, **{"adapter_model.bin": b"\x80"}),
        "isn't a file of an adapter": archive(tensors, **{"../outside.json": b"{}"}),
        "several adapters": archive(tensors, **{"other/adapter_config.json": config}),
        "isn't a plain file": link.getvalue(),
    }
    for said, body in cases.items():
        assert said in refused(send(body))["message"]
    assert "isn't JSON" in refused(send(archive(tensors, **{"adapter_config.json": b'{"r": NaN}'})))["message"]
    assert not list(services.artifacts.spool_dir.iterdir()), "nothing is left behind"
    assert refused(send(archive(tensors), kind="multipart/form-data; boundary=x"))["param"] == "header.Content-Type"


def test_an_adapter_in_a_folder_and_compressed_is_the_same(send, tensors, http, small):
    import gzip

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        folder = tarfile.TarInfo("./mine")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        parts = {
            "adapter_config.json": json.dumps(adapter_config(LORA)).encode(),
            "adapter_model.safetensors": save(tensors),
        }
        for name, content in parts.items():
            entry = tarfile.TarInfo(f"./mine/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    headers = {"content-type": "application/x-tar", "content-encoding": "gzip"}
    packed = gzip.compress(buffer.getvalue())
    first = http.post(f"{MODELS}/{small['id']}/versions", content=packed, headers=headers)
    assert first.status_code == 200, first.text
    assert send(archive(tensors)).json() == first.json(), "the same content"


def test_a_model_without_its_base_model_takes_no_import(http, store, tensors):
    row = store.models.add("team", "project", "left", "another/base", return_existing=False)
    headers = {"content-type": "application/x-tar"}
    response = http.post(f"{MODELS}/{row.id}/versions", content=archive(tensors), headers=headers)
    assert refused(response)["code"] == "base_model_not_found"
    assert http.get(f"{MODELS}/{row.id}").json()["lora"] is None


def test_an_import_larger_than_the_limit_is_refused(configure, send, tensors):
    configure("limits", max_adapter_bytes=1000)
    assert "limits.max_adapter_bytes" in refused(send(archive(tensors)), 413)["message"]


def test_an_adapter_that_learners_or_engines_cannot_use_is_no_version(send, tensors, trials, services, store, small):
    body = archive(tensors)
    trials.logprobs = [float("nan"), 0.0]
    assert refused(send(body))["code"] == "version_not_finite"
    trials.logprobs, trials.answers = [-1.0], [VersionNotFiniteError("d", "no")]
    assert refused(send(body))["code"] == "version_not_finite"
    trials.answers = [{"is_right": False, "max": 2.0}]
    assert refused(send(body), 503)["code"] == "engine_disagrees"
    assert not store.versions.page(small["id"], "team", 10)
    assert len(list(services.artifacts.checkpoints_dir.iterdir())) == 1, "its files are gone"
    trials.answers = [None, TimeoutError()]  # this engine loads it with its first request
    assert send(body).json()["step"] == 1


def test_versions_stay_in_one_line_while_jobs_are_at_work(send, tensors, small, store, add_job, claim):
    job = add_job(store.models.get(small["id"], "team"))
    first = send(archive(tensors), key="first").json()
    assert first["step"] == 1, "a queued job starts from the imported version"
    claimed = claim()
    assert claimed.version.step == 1 and not claimed.lost_optimizer and claimed.next_step == 2
    assert send(archive(tensors), key="first").json() == first, "a repeat changes nothing"
    error = refused(send(archive(tensors), key="again"), 409)
    assert error["code"] == "job_in_progress" and job.id in error["message"]
    store.claims.requeue(claimed, "a learner died")
    assert refused(send(archive(tensors), key="again"), 409)["code"] == "job_in_progress"
    again = claim()
    store.claims.complete(again, PolicyVersion(small["id"], again.next_step, "d" * 64), {})
    assert send(archive(tensors)).json()["step"] == 3


# Download


@pytest.fixture
def url(send, tensors, small):
    step = send(archive(tensors)).json()["step"]
    return f"{MODELS}/{small['id']}/versions/{step}/adapter"


def test_the_archive_has_the_files_of_the_version_and_its_digest(http, url, tensors, store, small):
    whole = http.get(url)
    digest = store.versions.resolve("team", "project", "small", 1).digest
    assert whole.headers["x-policy-digest"] == digest and whole.headers["etag"] == f'"{digest}"'
    assert whole.headers["x-base-model-path"] == "builtin:tiny"
    with tarfile.open(fileobj=io.BytesIO(whole.content)) as tar:
        assert tar.getnames() == ["adapter_config.json", "adapter_model.safetensors"]
        found = load(tar.extractfile("adapter_model.safetensors").read())
        config = tar.extractfile("adapter_config.json").read()
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)
    assert json.loads(config)["r"] == 2
    for name, content in (("adapter_config.json", config), ("adapter_model.safetensors", None)):
        one = http.get(f"{url}/{name}")
        assert content is None or one.content == content
        digest_of = base64.b64decode(one.headers["repr-digest"].removeprefix("sha-256=:").removesuffix(":"))
        assert digest_of == hashlib.sha256(one.content).digest()
    assert refused(http.get(f"{url}/manifest.json"), 404)["code"] == "file_not_found"
    initial = http.get(f"{MODELS}/{small['id']}/versions/0/adapter/adapter_model.safetensors")
    assert all(not tensor.any() for name, tensor in load(initial.content).items() if "lora_B" in name)


def test_a_download_can_be_resumed_at_every_byte(http, url):
    for address in (url, f"{url}/adapter_model.safetensors"):
        whole = http.get(address)
        size, etag = len(whole.content), whole.headers["etag"]
        head = http.head(address)
        assert (int(head.headers["content-length"]), head.content, head.headers["etag"]) == (size, b"", etag)
        for start, end in ((0, 1), (1, 511), (500, 1500), (512, size), (size - 1, size), (0, size)):
            part = http.get(address, headers={"range": f"bytes={start}-{end - 1}", "if-range": etag})
            assert part.content == whole.content[start:end]
            if (start, end) != (0, size):
                assert part.status_code == 206 and part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        assert http.get(address, headers={"range": "bytes=700-"}).content == whole.content[700:]
        assert http.get(address, headers={"range": "bytes=-7"}).content == whole.content[-7:]
        assert http.get(address, headers={"range": f"bytes=5-{10 * size}"}).content == whole.content[5:]
        changed = http.get(address, headers={"range": "bytes=5-", "if-range": '"another"'})
        assert changed.status_code == 200 and changed.content == whole.content
        for several in ("bytes=0-1,3-4", "lines=1-2", "bytes=9-3"):
            assert http.get(address, headers={"range": several}).content == whole.content
        for beyond in (f"bytes={size}-", "bytes=-0"):
            response = http.get(address, headers={"range": beyond})
            assert refused(response, 416)["param"] == "Range"
            assert response.headers["content-range"] == f"bytes */{size}"
        assert http.get(address, headers={"if-none-match": f'"x", {etag}'}).status_code == 304


def test_versions_that_are_gone_say_so(http, url, small, store, clock, services):
    assert refused(http.get(url.replace("/1/", "/2/")), 404)["code"] == "version_not_found"
    stranger = {"Authorization": f"Bearer {create_key(store, 'k', 'others', 'admin')}"}
    assert refused(http.get(url, headers=stranger), 404)["code"] == "model_not_found"
    reader = {"Authorization": f"Bearer {create_key(store, 'k', 'team', 'infer')}"}
    assert refused(http.get(url, headers=reader), 403)["code"] == "insufficient_role"
    http.request("DELETE", f"{MODELS}/{small['id']}/checkpoints", json={"steps": [1]})
    assert "was deleted" in refused(http.get(url), 404)["message"]


# Fork


def test_a_fork_begins_with_the_version_and_shares_its_files(http, register, url, small, store, services):
    source = store.versions.resolve("team", "project", "small", 1)
    fork = register("fork", **{"from": {"model": small["id"], "step": 1}}).json()
    assert fork["lora"] == SMALL and fork["step"] == 1
    made_from = {"model": "team/project/small", "model_id": small["id"], "step": 1, "optimizer": False}
    assert fork["origin"] == {"kind": "fork", **made_from}
    assert store.versions.resolve("team", "project", "fork", None).digest == source.digest
    named = {"from": {"model": "project/small"}}
    assert register("fork", return_existing=True, **named).json()["id"] == fork["id"]
    assert refused(register("fork", **named), 409)["param"] == "name"
    other = {"from": {"model": "project/small", "step": 0}}
    assert refused(register("fork", return_existing=True, **other), 409)["param"] == "from"
    http.delete(f"{MODELS}/{small['id']}")
    assert http.get(f"{MODELS}/{fork['id']}/versions/1/adapter").status_code == 200, "the files outlive the source"
    assert services.artifacts.pull_checkpoint(source.digest)
    http.delete(f"{MODELS}/{fork['id']}")
    assert not services.artifacts.checkpoint_sizes(source.digest), "nobody needs them any more"


def test_forks_that_cannot_be_are_refused_by_field(register, url, small, store):
    def fork(**source):
        return register("fork", **{"from": {"model": "team/project/small", **source}})

    assert refused(fork(optimizer=True))["param"] == "body.from.optimizer"
    assert refused(fork(step=9), 404)["param"] == "from.step"
    assert refused(fork(model="others/project/small"), 404)["code"] == "model_not_found"
    assert refused(fork(model="x"), 404)["code"] == "model_not_found"
    assert refused(register("fork", lora=SMALL, **{"from": {"model": small["id"]}}))["param"] == "body.lora"
    store.models.add("team", "project", "elsewhere", "another/base", return_existing=False)
    assert refused(fork(model="project/elsewhere"))["param"] == "body.base_model"
    zero = fork(step=0).json()
    assert zero["step"] == 0 and zero["lora"] == SMALL
