"""Routes of the logs of a job's version."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from fastapi.responses import StreamingResponse

from tandem.serve.modelarts.api.envelope import envelope_router
from tandem.serve.modelarts.api.jobs import VERSION, JobId, VersionId
from tandem.serve.modelarts.api.projects import ProjectDep

router = envelope_router()
MAX_LOG_LINES = 500


@router.get(f"{VERSION}/log/file-names")
def list_log_files(project: ProjectDep, job_id: JobId, version_id: VersionId) -> dict[str, Any]:
    """List the log files of a version: one for each worker that has written output."""
    files = project.store.logs.files(project.id, job_id, version_id)
    return {"is_success": True, "log_file_list": list(files)}


@router.get(f"{VERSION}/aom-log")
def get_log(
    project: ProjectDep,
    job_id: JobId,
    version_id: VersionId,
    log_file: Annotated[str, Query(max_length=64)],
    base_line: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    lines: Annotated[int, Query(ge=0, le=MAX_LOG_LINES)] = 50,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """Return lines of a log file, during the run and after it: with `asc` those after `base_line`, with `desc` before.

    Without `base_line`, `desc` starts at the end of the file and `asc` at the beginning. To get the next page, send
    the `end_line` (asc) or `start_line` (desc) of this page as `base_line`.
    """
    size = project.store.logs.size(project.id, job_id, version_id, log_file)
    if order == "asc":
        first = (base_line or 0) + 1
        last = min(size, first + lines - 1)
    else:
        last = size if base_line is None else min(size, base_line - 1)
        first = max(1, last - lines + 1)
    content = project.store.logs.read(version_id, log_file, first, last - first + 1) if last >= first else []
    return {
        "is_success": True,
        "content": "".join(f"{line}\n" for line in content),
        "lines": len(content),
        "start_line": first,
        "end_line": first + len(content) - 1,
    }


@router.get(f"{VERSION}/log/search")
def search_log(
    project: ProjectDep,
    job_id: JobId,
    version_id: VersionId,
    log_file: Annotated[str, Query(max_length=64)],
    text: Annotated[str, Query(min_length=1, max_length=256)],
    base_line: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    lines: Annotated[int, Query(ge=1, le=MAX_LOG_LINES)] = 50,
) -> dict[str, Any]:
    """Find the lines after `base_line` that have the text, in upper or lower case.

    One request searches a limited number of lines. While `is_end` is false, the next one continues with the `end_line`
    of this one as `base_line`.
    """
    project.store.logs.size(project.id, job_id, version_id, log_file)
    found = project.store.logs.search(version_id, log_file, text, base_line, lines)
    return {
        "is_success": True,
        "matches": [{"line": number, "content": line} for number, line in found.lines],
        "end_line": found.end_line,
        "is_end": found.is_end,
    }


@router.get(f"{VERSION}/log/files/{{log_file}}", response_class=StreamingResponse)
def download_log(
    project: ProjectDep, job_id: JobId, version_id: VersionId, log_file: Annotated[str, Path(max_length=64)]
) -> StreamingResponse:
    """Return a whole log file as plain text, as far as it goes now."""
    project.store.logs.size(project.id, job_id, version_id, log_file)
    pieces = (piece.encode() for piece in project.store.logs.pieces(version_id, log_file))
    name = f"job-{job_id}-version-{version_id}-{log_file}"
    headers = {"content-disposition": f'attachment; filename="{name}"', "x-content-type-options": "nosniff"}
    return StreamingResponse(pieces, media_type="text/plain; charset=utf-8", headers=headers)
