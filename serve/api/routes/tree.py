"""Routes of the tree of a model's versions, and of one version with the sizes of its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from fastapi import Path as PathParameter

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.rl.checkpoint_files import OPTIMIZER
from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.version_runs import best_step, collapsed
from tandem.serve.api.wire.paging import Limit, Page, cursor_number, numbered_cursor
from tandem.serve.api.wire.requests import MAX_STEP
from tandem.serve.api.wire.tree import CheckpointDetails, TreeFork, TreeItem, TreeParent, TreeVersion
from tandem.serve.api.wire.views import checkpoint_view, initial_checkpoint_view
from tandem.serve.store.policies.lineage import FORK, IMPORT, RUN
from tandem.serve.store.policies.tree import Node

router = APIRouter(prefix="/preview/models/{model_id}", tags=["models"])


@router.get("/tree")
def get_tree(
    model_id: UUID,
    caller: TrainCaller,
    services: ServicesDep,
    after: str | None = None,
    limit: Limit = 100,
    collapse: bool = True,
) -> Page[TreeItem]:
    """List the model's versions with their parents, jobs and forks, the newest first, down to version 0.

    Deleted versions are listed, too. Versions of which none stands out are collapsed to runs unless `collapse` is
    false. Those that stand out are the newest five, the one with the highest reward, kept ones, imported ones, and
    those from which something branches off.
    """
    below = MAX_STEP + 1 if after is None else cursor_number(after, str(model_id))
    nodes = services.store.tree.nodes(str(model_id), caller.entity)
    groups = collapsed(nodes) if collapse else [[node] for node in nodes]
    page = [group for group in reversed(groups) if group[0].step < below][: limit + 1]
    newest, best = max(node.step for node in nodes if node.state == "live"), best_step(nodes)
    view = _View(str(model_id), newest, best)
    return Page.of([view.item(group) for group in page], limit)


class _View:
    def __init__(self, model_id: str, newest: int, best: int | None):
        self._model_id, self._newest, self._best = model_id, newest, best

    def item(self, group: Sequence[Node]) -> TreeItem:
        first, last = group[0], group[-1]
        rewards = [node.reward for node in group if node.reward is not None]
        parent = first.parent
        return TreeItem(
            id=numbered_cursor(self._model_id, first.step),
            first_step=first.step,
            last_step=last.step,
            count=len(group),
            state=first.state,
            reason=_reason(group),
            parent=parent
            and TreeParent(model_id=parent.model_id, step=parent.step, model=parent.path, exists=parent.exists),
            version=self._version(first) if len(group) == 1 else None,
            lowest_reward=min(rewards, default=None),
            highest_reward=max(rewards, default=None),
        )

    def _version(self, node: Node) -> TreeVersion:
        kind = (node.origin or {}).get("kind")
        known = {IMPORT: "import", FORK: "fork", RUN: "run", None: "job" if node.job else "unknown"}
        return TreeVersion.model_validate(
            {
                "step": node.step,
                "origin": "initial" if node.step == 0 else known[kind],
                "digest": node.digest,
                "created_at": node.created_at,
                "job_id": node.job and node.job.id,
                "job_kind": node.job and node.job.kind,
                "run_id": node.run_id,
                "checkpoint_name": node.checkpoint_name,
                "imported_from": node.origin if kind == IMPORT else None,
                "metrics": node.metrics,
                "has_optimizer": node.has_optimizer,
                "kept_at": node.kept_at,
                "is_newest": node.step == self._newest,
                "is_best": node.step == self._best,
                "forks": [TreeFork(model_id=one.id, model=one.path, deleted=one.is_deleted) for one in node.forks],
            }
        )


def _reason(group: Sequence[Node]) -> str | None:
    days = sorted({node.gone_at.date().isoformat() for node in group if node.gone_at})
    when = f" on {days[0]}" if len(days) == 1 else f" between {days[0]} and {days[-1]}" if days else ""
    match group[0].state:
        case "retired":
            return f"Deleted by retention (retention.keep_versions){when}."
        case "deleted":
            return f"Deleted by request{when}."
        case _:
            return None


@router.get("/checkpoints/{step}")
def get_checkpoint(
    model_id: UUID, step: Annotated[int, PathParameter(ge=0, le=MAX_STEP)], caller: TrainCaller, services: ServicesDep
) -> CheckpointDetails:
    """Return a version with the sizes of its files. Version 0 has some, too."""
    versions = services.store.versions
    found = versions.get(str(model_id), caller.entity, step)
    if step == 0:
        view = initial_checkpoint_view(services.store.models.get(str(model_id), caller.entity), found.digest)
    else:
        view = checkpoint_view(versions.row(found))
    sizes = services.artifacts.checkpoint_sizes(found.digest)
    return CheckpointDetails(
        **view.model_dump(),
        adapter_bytes=sum(sizes.get(name, 0) for name in ADAPTER_FILES),
        optimizer_bytes=sizes.get(OPTIMIZER, 0),
    )
