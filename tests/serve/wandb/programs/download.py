"""Look up artifacts and download their files. Print what the package finds."""

import json
import sys
from pathlib import Path

import wandb


def main() -> None:
    name, kind, directory = sys.argv[1:]
    api = wandb.Api()
    artifact = api.artifact(name, type=kind)
    root = Path(artifact.download(root=directory))
    collection = artifact.source_qualified_name.partition(":")[0]
    print(
        json.dumps(
            {
                "entity": api.default_entity,
                "name": artifact.name,
                "aliases": artifact.aliases,
                "files": {path.name: path.stat().st_size for path in root.iterdir()},
                "versions": [(one.version, one.aliases) for one in api.artifacts(kind, collection)],
            }
        )
    )
    artifact.metadata["wandb.provenance"] = ["serverless-sft"]
    artifact.save()
    print(json.dumps({"metadata": api.artifact(name, type=kind).metadata}))


main()
