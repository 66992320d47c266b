"""The wire types of graders, as OpenAI's SDK sends them. What can't be graded here is rejected by field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tandem.rl.graders.errors import GraderError
from tandem.rl.graders.formulas import check_formula
from tandem.rl.graders.templates import check_template
from tandem.rl.graders.text_similarity import METRICS

MAX_TEXT = 100_000
MAX_GRADERS = 20
UNSUPPORTED_METRICS = {
    "cosine": "compares embeddings, which this service doesn't compute",
    "meteor": "needs the WordNet database, which isn't part of this service",
}


def _checked(check: Callable[[str], None]) -> AfterValidator:
    def validate(text: str) -> str:
        try:
            check(text)
        except GraderError as error:
            raise ValueError(error.reason) from None
        return text

    return AfterValidator(validate)


def _supported_metric(name: Any) -> Any:
    if reason := UNSUPPORTED_METRICS.get(str(name)):
        raise ValueError(f"{name} {reason}; use one of {', '.join(METRICS)}")
    if name not in METRICS:
        raise ValueError(f"must be one of {', '.join(METRICS)}")
    return name


Template = Annotated[str, Field(max_length=MAX_TEXT), _checked(check_template)]
Metric = Annotated[str, BeforeValidator(_supported_metric)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]


class Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StringCheckGrader(Spec):
    """1 if `input` and `reference` pass the check, else 0."""

    type: Literal["string_check"]
    name: Name
    input: Template
    reference: Template
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarityGrader(Spec):
    """The similarity of `input` and `reference`, between 0 and 1."""

    type: Literal["text_similarity"]
    name: Name
    input: Template
    reference: Template
    evaluation_metric: Metric


class PythonGrader(Spec):
    """The number that `grade(sample, item)` of a program returns."""

    type: Literal["python"]
    name: Name
    source: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
    image_tag: None = None
    """Programs run in the service's own Python; other images don't exist here."""


class TextPart(Spec):
    type: Literal["input_text", "output_text"]
    text: Template


class InputMessage(Spec):
    """A message for the judge."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | TextPart | Annotated[list[Template | TextPart], Field(min_length=1, max_length=100)]
    type: Literal["message"] | None = None

    @property
    def text(self) -> str:
        """Return the template of the whole content."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(part if isinstance(part, str) else part.text for part in parts)


class JudgeSampling(Spec):
    """How the judge is sampled. Default: greedily."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: None = None
    """The judges of this service have no such setting."""


class ScoreModelGrader(Spec):
    """The number that a judge, any model of the service that the key may use, gives the answer."""

    type: Literal["score_model"]
    name: Name
    model: Annotated[str, Field(min_length=1, max_length=500)]
    input: Annotated[list[InputMessage], Field(min_length=1, max_length=100)]
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    sampling_params: JudgeSampling | None = None

    @model_validator(mode="after")
    def _has_ordered_range(self) -> Self:
        low, high = self.bounds
        if low >= high:
            raise ValueError("range must be [lowest, highest], with lowest < highest")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        low, high = self.range or (0.0, 1.0)
        return low, high


class LabelModelGrader(Spec):
    """1 if a judge gives the answer one of the passing labels, else 0."""

    type: Literal["label_model"]
    name: Name
    model: Annotated[str, Field(min_length=1, max_length=500)]
    input: Annotated[list[InputMessage], Field(min_length=1, max_length=100)]
    labels: Annotated[list[Name], Field(min_length=1, max_length=100)]
    passing_labels: Annotated[list[Name], Field(max_length=100)]
    sampling_params: JudgeSampling | None = None

    @model_validator(mode="after")
    def _passes_by_its_labels(self) -> Self:
        if unknown := set(self.passing_labels) - set(self.labels):
            raise ValueError(f"passing_labels has {len(unknown)} that are not among the labels")
        return self


SingleGrader = Annotated[
    StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader | LabelModelGrader,
    Field(discriminator="type"),
]


def _by_name(graders: Any) -> Any:
    """Accept also a list of graders, or one: the SDK's type allows one, OpenAI's guide has an object of them."""
    if isinstance(graders, dict) and isinstance(graders.get("type"), str):
        graders = [graders]
    if isinstance(graders, list):
        named = {str(one.get("name")) if isinstance(one, dict) else str(i): one for i, one in enumerate(graders)}
        if len(named) < len(graders):
            raise ValueError("two graders have the same name")
        return named
    return graders


class MultiGrader(Spec):
    """A formula over the results of several graders."""

    type: Literal["multi"]
    name: Name
    graders: Annotated[dict[Name, SingleGrader], BeforeValidator(_by_name), Field(min_length=1, max_length=MAX_GRADERS)]
    calculate_output: str

    @model_validator(mode="after")
    def _has_a_formula_of_its_graders(self) -> Self:
        try:
            check_formula(self.calculate_output, self.graders)
        except GraderError as error:
            raise ValueError(error.reason) from None
        return self


Grader = Annotated[
    StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader | LabelModelGrader | MultiGrader,
    Field(discriminator="type"),
]


def parts(grader: Grader) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and the spec of each grader that isn't a formula."""
    if isinstance(grader, MultiGrader):
        for name, part in grader.graders.items():
            yield ("graders", name), part
    else:
        yield (), grader
