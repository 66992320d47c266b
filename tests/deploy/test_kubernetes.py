"""The manifests of deploy/kubernetes are valid and agree with each other."""

import copy
import re

import jsonschema
import pytest
import yaml
from manifests import (
    FILES,
    KUBERNETES,
    ROOT,
    check,
    cluster_of,
    documents,
    of_kind,
    pod_templates,
    quantity,
    references,
)
from ray.serve.schema import ServeDeploySchema

from tandem.cluster.config import TandemConfig
from tandem.cluster.placement import place
from tandem.serve.api.routes import health
from tandem.serve.app.proxy_middleware import PROXY_ENVIRONMENT
from tandem.serve.deployment import configuration

MANIFESTS = [(file, one) for file in FILES for one in documents(file.read_text())]
NAMES = [f"{file.relative_to(KUBERNETES)}:{one['kind']}/{one['metadata']['name']}" for file, one in MANIFESTS]
SERVICES = of_kind("RayService")
CLUSTERS = SERVICES + of_kind("RayCluster")
PODS = [(f"{one['kind']}/{one['metadata']['name']}", pod) for _, one in MANIFESTS for pod in pod_templates(one)]
GUIDE = (ROOT / "docs/deploy.md").read_text()


def serve_config(service):
    return ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))


def tandem_config(service):
    [application] = serve_config(service).applications
    assert application.import_path == "tandem.serve.deployment:application"
    return configuration(application.args)


@pytest.mark.parametrize("manifest", [one for _, one in MANIFESTS], ids=NAMES)
def test_every_field_is_in_its_schema(manifest):
    check(manifest)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayService", "spec.serveConfigv2", "x"),
        ("RayService", "spec.upgradeStrategy.type", "Rolling"),
        ("RayService", "spec.rayClusterConfig.authOptions.secret", "tandem-ray-token"),
        ("RayService", "spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", 0),  # strings only
        ("RayCluster", "spec.gcsFaultToleranceOptions.redisUrl", "redis://tandem-redis:6379"),
        ("RayCluster", "spec.workerGroupSpecs.0.replicas", "2"),
        ("RayCluster", "spec.workerGroupSpecs.0.template.spec.containers.0.resources.limit", {}),
        ("RayCluster", "spec.workerGroupSpecs.0.template.spec.volumes.0.emptyDir.size", "2Gi"),
        ("StatefulSet", "spec.template.spec.containers.0.readinesProbe", {}),
        ("NetworkPolicy", "spec.ingress.0.from.0.podSelectors", {}),
        ("Service", "spec.ports.0.port", "six"),
    ],
)
def test_a_wrong_field_is_found(kind, path, value):
    [(_, manifest), *_] = of_kind(kind)
    changed = copy.deepcopy(manifest)
    *parents, last = path.split(".")
    place = changed
    for step in parents:
        place = place[int(step)] if isinstance(place, list) else place.setdefault(step, [{}] if step == "from" else {})
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check(changed)


@pytest.mark.parametrize(("file", "service"), SERVICES, ids=lambda one: getattr(one, "parent", one) and "")
def test_serve_and_tandem_accept_the_service_in_it(file, service):
    written = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert set(written) <= set(ServeDeploySchema.model_fields)  # Serve ignores unknown fields
    config = tandem_config(service)
    assert (
        config.artifacts.startswith("s3://") and config.store_url is None
    )  # its URL has a password, so it is in a Secret
    assert config.http.api_replicas >= 2 and all(base.engine.replicas >= 2 for base in config.base_models)


@pytest.mark.parametrize(("file", "service"), SERVICES, ids=[file.parent.name for file, _ in SERVICES])
def test_its_learners_and_engines_fit_its_workers(file, service):
    config = tandem_config(service)
    free = [
        {name: quantity(limits.get(name, "0")) for name in ("cpu", "nvidia.com/gpu")}
        for group in cluster_of(service)["workerGroupSpecs"]
        for limits in [group["template"]["spec"]["containers"][0]["resources"]["limits"]]
        for _ in range(group["replicas"])
    ]
    num_gpus = int(sum(node["nvidia.com/gpu"] for node in free))
    actors = actors_of(place(config, num_gpus).config)
    assert fits(actors, copy.deepcopy(free)), (actors, free)
    assert not fits(actors, copy.deepcopy(free)[:1]) or file.parent.name == "cpu"  # the workers are nearly full
    if file.parent.name == "gpu":
        assert all(gpus == 1 for _, gpus in actors) and len(actors) == num_gpus
        # Serve may build the application before nodes with GPUs join, so placement must not depend on their number.
        assert place(config, 0).base_models == place(config, num_gpus).base_models


def actors_of(config: TandemConfig) -> list[tuple[float, float]]:
    """Return (CPUs, GPUs) of each learner and engine."""
    return [
        (part.num_cpus, part.num_gpus)
        for base in config.base_models
        for part, count in ((base.learners, base.learners.count), (base.engine, base.engine.replicas))
        for _ in range(count)
    ]


def fits(actors, nodes) -> bool:
    """Return True if every actor fits when each takes the first node with room, the largest first."""
    for cpus, gpus in sorted(actors, reverse=True):
        node = next((n for n in nodes if n["cpu"] >= cpus and n["nvidia.com/gpu"] >= gpus), None)
        if node is None:
            return False
        node["cpu"] -= cpus
        node["nvidia.com/gpu"] -= gpus
    return True


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_a_ray_cluster_equals_that_of_the_service_of_its_profile(profile):
    [service] = documents((KUBERNETES / profile / "rayservice.yaml").read_text())
    [cluster] = documents((KUBERNETES / profile / "raycluster.yaml").read_text())
    redis = cluster["spec"]["gcsFaultToleranceOptions"]
    assert redis.pop("externalStorageNamespace") == "tandem"
    assert cluster["spec"] == service["spec"]["rayClusterConfig"]


@pytest.mark.parametrize(
    ("file", "manifest"), CLUSTERS, ids=[str(file.relative_to(KUBERNETES)) for file, _ in CLUSTERS]
)
def test_ray_has_the_installed_version_and_requires_a_token(file, manifest):
    import ray

    cluster = cluster_of(manifest)
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token", "secretName": "tandem-ray-token"}
    images = {pod["spec"]["containers"][0]["image"] for pod in pod_templates(manifest)}
    assert len(images) == 1 and images.pop().endswith(f"-{file.parent.name}")


def test_the_guide_creates_every_secret():
    used = {("tandem-ray-token", "auth_token")}  # the key that KubeRay reads
    for _, manifest in MANIFESTS:
        used |= {(reference["name"], reference["key"]) for reference in references(manifest, "secretKeyRef")}
    lines = GUIDE.replace("\\\n", " ").splitlines()
    told = {
        (line.split()[4], key)
        for line in lines
        if line.startswith("kubectl create secret generic ")
        for key in re.findall(r"--from-literal=([\w-]+)=", line)
    }
    assert used == told


def test_every_service_leads_to_a_port_of_a_pod():
    pods = [pod for _, pod in PODS]
    for _, service in of_kind("Service"):
        [pod] = [p for p in pods if service["spec"]["selector"].items() <= p["metadata"]["labels"].items()]
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for _, stateful in of_kind("StatefulSet"):
        assert stateful["spec"]["serviceName"] in {service["metadata"]["name"] for _, service in of_kind("Service")}


def test_ray_uses_the_address_of_redis():
    [redis] = [service for _, service in of_kind("Service") if service["metadata"]["name"] == "tandem-redis"]
    port = redis["spec"]["ports"][0]["port"]
    for _, manifest in CLUSTERS:
        assert cluster_of(manifest)["gcsFaultToleranceOptions"]["redisAddress"] == f"redis://tandem-redis:{port}"


def test_only_named_ports_are_open():
    policies = {policy["metadata"]["name"]: policy["spec"] for _, policy in of_kind("NetworkPolicy")}
    for name, pod in PODS:
        labels = pod["metadata"]["labels"]
        over = [p for p in policies.values() if p["podSelector"]["matchLabels"].items() <= labels.items()]
        assert over and all(p["policyTypes"] == ["Ingress"] for p in over), name
    from_anywhere = [rule["ports"] for p in policies.values() for rule in p["ingress"] if "from" not in rule]
    [service_ports] = {tuple(serve_config(service).http_options.model_dump()["port"] for _, service in SERVICES)}
    assert from_anywhere == [[{"port": service_ports[0], "protocol": "TCP"}]]
    for _, manifest in CLUSTERS:
        for pod in pod_templates(manifest):
            ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
            assert ports["serve"] == service_ports[0]


@pytest.mark.parametrize(("name", "pod"), PODS, ids=[f"{name}-{number}" for number, (name, _) in enumerate(PODS)])
def test_a_pod_runs_unprivileged_within_limits(name, pod):
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    [container] = spec["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    resources = container["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"] and "cpu" in resources["requests"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    claimed = {"data"} if not name.startswith("Ray") else set()
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes) | claimed
    for volume in volumes.values():
        assert "sizeLimit" in volume["emptyDir"]
    if name.startswith("Ray"):
        memory, shm = resources["limits"]["memory"], volumes["shared-mem"]["emptyDir"]
        assert shm["medium"] == "Memory" and quantity(shm["sizeLimit"]) < quantity(memory) / 2
        paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        assert paths["shared-mem"] == "/dev/shm" and paths["models"] == environment["HF_HOME"]


@pytest.mark.parametrize(
    ("file", "manifest"), CLUSTERS, ids=[str(file.relative_to(KUBERNETES)) for file, _ in CLUSTERS]
)
def test_workers_are_ready_once_the_service_is(file, manifest):
    cluster = cluster_of(manifest)
    for group in cluster["workerGroupSpecs"]:
        probe = group["template"]["spec"]["containers"][0]["readinessProbe"]
        assert ":8000/ready" in probe["exec"]["command"][-1]
        assert probe["timeoutSeconds"] > health.STATUS_DEADLINE_S
        assert probe["failureThreshold"] * probe["periodSeconds"] >= 60  # an engine restarts meanwhile
    # The operator deploys the service once the head node is ready.
    assert "readinessProbe" not in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]


def test_proxies_have_the_middleware_in_every_deployment():
    def of_pods(manifest):
        for pod in pod_templates(manifest):
            variables = pod["spec"]["containers"][0]["env"]
            yield {variable["name"]: variable.get("value") for variable in variables}

    of_serve = yaml.safe_load((ROOT / "deploy/serve.yaml").read_text())["controller_options"]["runtime_env"]["env_vars"]
    options = yaml.safe_load((ROOT / "deploy/ray-cluster.yaml").read_text())["docker"]["run_options"]
    of_docker = dict(option.removeprefix("--env=").split("=", 1) for option in options if option.startswith("--env="))
    found = [*(of for _, manifest in CLUSTERS for of in of_pods(manifest)), of_serve, of_docker]
    assert len(found) == 2 * len(CLUSTERS) + 2
    assert all(PROXY_ENVIRONMENT.items() <= environment.items() for environment in found)


def test_nothing_secret_is_in_a_manifest():
    for file in FILES:
        assert not re.search(r"(password|token|secret)[\w-]*:\s*[\"']?[A-Za-z0-9+/]{16,}", file.read_text(), re.I), file
        assert "kind: Secret" not in file.read_text()
