"""The manifests of deploy/kubernetes, read and checked without a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from paths import ROOT
from referencing import Registry, Resource

Manifest = dict[str, Any]
KUBERNETES = ROOT / "deploy/kubernetes"
FILES = sorted(KUBERNETES.rglob("*.yaml"))
KUBERNETES_VERSION = "1.37"


def documents(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def of_kind(kind: str) -> list[tuple[Path, Manifest]]:
    return [(file, one) for file in FILES for one in documents(file.read_text()) if one["kind"] == kind]


def check(manifest: Manifest) -> None:
    """Check every field against the published schema of its kind. Raise jsonschema.ValidationError."""
    definitions = _kubernetes("_definitions")
    registry = definitions @ Registry()
    if manifest["apiVersion"] == "ray.io/v1":
        kuberay = yaml.safe_load((Path(__file__).parent / "data/kuberay.yaml").read_text())
        schema = {"$ref": f"#/$defs/{manifest['kind']}", **kuberay}
    else:
        group, _, version = manifest["apiVersion"].rpartition("/")
        name = "-".join(part for part in (manifest["kind"].lower(), group.partition(".")[0], version) if part)
        schema = _kubernetes(name).contents
    jsonschema.Draft202012Validator(schema, registry=registry).validate(manifest)


def _kubernetes(name: str) -> Resource:
    """Return Kubernetes's OpenAPI schema of a kind, in the strict form that rejects unknown fields."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES_VERSION}.0-local-strict"
    return Resource.from_contents(json.loads((folder / f"{name}.json").read_text()))


def cluster_of(manifest: Manifest) -> Manifest:
    """Return the specification of the Ray cluster in a RayService or a RayCluster."""
    return manifest["spec"]["rayClusterConfig"] if manifest["kind"] == "RayService" else manifest["spec"]


def pod_templates(manifest: Manifest) -> list[Manifest]:
    """Return the templates of all pods that a manifest creates."""
    if manifest["apiVersion"] == "ray.io/v1":
        cluster = cluster_of(manifest)
        return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [manifest["spec"]["template"]] if manifest["kind"] == "StatefulSet" else []


def references(value: Any, key: str) -> Iterator[Any]:
    """Yield all values under `key`, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from references(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner, key)


def quantity(text: str) -> float:
    """Convert a Kubernetes quantity to a number: 500m is 0.5, 2Gi is 2 * 2**30."""
    for suffix, factor in {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)
