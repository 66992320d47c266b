"""What a run's jobs have trained, for the end of the run."""

from __future__ import annotations

from tandem.runs.directory import RunDirectory
from tandem.runs.errors import NothingTrainedError
from tandem.runs.ledger import Row

MAX_LISTED = 10


def say_what_trained(directory: RunDirectory) -> str | None:
    """Return a sentence if some jobs of a finished run trained nothing. Raise NothingTrainedError if none did."""
    rows = directory.ledger.of("training")
    idle = [row for row in rows if row.get("gradient_steps") == 0]
    if not idle:
        return None
    if len(idle) == len(rows):
        raise NothingTrainedError(
            f"Nothing was trained: none of the {len(rows)} jobs made a gradient step, so all versions have the weights "
            f"of version {directory.model.start_version}. {_reasons(idle)} Change the environment or the task file, "
            "and start a new run with another name."
        )
    listed = ", ".join(str(row["batch"] + 1) for row in idle[:MAX_LISTED])
    more = ", ..." if len(idle) > MAX_LISTED else ""
    return f"{len(idle)} of the {len(rows)} jobs trained nothing (jobs {listed}{more}). {_reasons(idle)}"


def _reasons(idle: list[Row]) -> str:
    """Return sentences about the batches that trained nothing."""
    equal = sum(row.get("reward/std_in_group") == 0 for row in idle)
    identical = sum(row.get("rollouts/identical_groups", 0) for row in idle)
    said = [f"In {equal} of their {len(idle)} batches, the rewards within each group were equal."] if equal else []
    if identical:
        said.append(f"In {identical} of their groups, all rollouts sampled the same tokens.")
    return " ".join([*said, "The jobs' events have the counts by reason (`tandem watch JOB`)."])
