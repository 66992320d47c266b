"""Upload training data as openpipe-art does, and print the artifact as the package reports it."""

import json
import sys
from pathlib import Path

import wandb


def main() -> None:
    file, name = Path(sys.argv[1]), sys.argv[2]
    wandb.login(verify=True)
    run = wandb.init(name="agent", id="agent", entity="team", project="project", resume="allow")
    run.log({"loss": 0.5})
    artifact = wandb.Artifact(name, type="dataset", metadata={"format": "jsonl", "num_trajectories": 2})
    artifact.add_file(str(file), name="train.jsonl")
    artifact = run.log_artifact(artifact).wait()
    print(json.dumps([artifact.version, str(artifact.state), artifact.aliases, artifact.metadata, artifact.size]))
    run.finish()


main()
