"""Graders of an entity: what it may use, and with which judges and programs."""

from __future__ import annotations

from tandem.cluster.config import TandemConfig
from tandem.rl.graders.grading import Grading
from tandem.rl.graders.programs import ProgramLimits
from tandem.rl.graders.spec import Grader, LabelModelGrader, PythonGrader, ScoreModelGrader, parts
from tandem.serve.api.services import CompletionServices
from tandem.serve.errors import BadRequestError, Problem
from tandem.serve.finetuning.completions import OwnCompletions
from tandem.serve.finetuning.models import find_origin


def check_grader(field: str, grader: Grader, entity: str, services: CompletionServices) -> None:
    """Raise BadRequestError for a program that the entity may not run, or a judge that it can't use.

    `field` is the grader's path in the body.
    """
    for path, part in parts(grader):
        place = ("body", *field.split("."), *path)
        if isinstance(part, PythonGrader) and not may_run_code(services.config, entity):
            reason = (
                f"Python graders are off: the service's operator can allow programs of {entity} with "
                f"projects.{entity}.run_code in its configuration"
            )
            raise BadRequestError([Problem((*place, "type"), reason)], "python_graders_off")
        if isinstance(part, ScoreModelGrader | LabelModelGrader):
            try:
                find_origin(services.store, services.base_models, entity, part.model)
            except BadRequestError as error:
                raise BadRequestError([Problem((*place, "model"), error.problems[0].msg)], error.code) from None


def grading(grader: Grader, completions: OwnCompletions, entity: str, config: TandemConfig) -> Grading:
    """Return the grader with the judges and programs that the entity may use."""
    programs = ProgramLimits() if may_run_code(config, entity) else None
    return Grading(grader, completions.ask, programs)


def may_run_code(config: TandemConfig, entity: str) -> bool:
    project = config.projects.get(entity)
    return project is not None and project.run_code
