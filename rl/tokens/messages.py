"""Chat messages, choices and tools, as the OpenAI API writes them.

These types reproduce the published JSON schema, but are more tolerant, because messages come from many clients and
engines: an optional key may be null, and unknown keys are kept. A validated message is the dict that was sent, ready
for a chat template. Only `Choice` is an object, so the two are easy to tell apart.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
    with_config,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

from tandem.rl.tokens.token_columns import CutLogprobs, TokenColumns
from tandem.rl.unread_fields import SAMPLED_DATA, is_for_log, reject_other_logprobs, reject_unread

T = TypeVar("T")


class _HiddenNull:
    """Accepts null, but doesn't publish that in the schema."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(core_schema["schema"])


class _AnyOf:
    """Publishes a tagged union as a plain `anyOf`."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": handler(core_schema)["oneOf"]}


def _as_sent(value: T, validate: ValidatorFunctionWrapHandler) -> T:
    """Validate, but keep the dict itself: chat templates print tools and calls in the order of their keys."""
    validate(value)
    return value


def _sent_by_assistant(value: T, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> T:
    """Validate as `_as_sent` does. Reject sampled tokens outside a choice, where they wouldn't be trained."""
    validate(value)
    if isinstance(value, dict) and not is_for_log(info):
        reject_unread("message", {name: value[name] for name in SAMPLED_DATA if name in value})
    return value


def _content_kind(value: Any) -> str:
    return "parts" if isinstance(value, list) else "text"


MAX_STEP = 2**31 - 1


def _policy_version(value: int) -> int:
    if not 0 <= value <= MAX_STEP:
        raise ValueError(f"must be the step of a policy version, from 0 to {MAX_STEP}")
    return value


PolicyStep = Annotated[int, Field(strict=True), AfterValidator(_policy_version)]
OrNull = Annotated[T | None, _HiddenNull()]
TextOr = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[T], Tag("parts")], Discriminator(_content_kind), _AnyOf()
]
Hidden = Annotated[T | None, SkipJsonSchema()]


def publish_open(schema: dict[str, Any]) -> None:
    """Drop the null defaults of optional keys, for an object whose schema allows unknown keys."""
    for key in schema["properties"].values():
        if key.get("default", ...) is None:
            del key["default"]


def publish_plain(schema: dict[str, Any]) -> None:
    """Drop the null defaults of optional keys, for an object whose schema doesn't mention unknown keys."""
    publish_open(schema)
    schema.pop("additionalProperties", None)


def _request_part(title: str) -> ConfigDict:
    return ConfigDict(title=title, extra="allow", strict=True, json_schema_extra=publish_plain)


def _response_part(title: str) -> ConfigDict:
    return ConfigDict(title=title, extra="allow", strict=True, json_schema_extra=publish_open)


# Parts of the messages in a request


@with_config(_request_part("ChatCompletionContentPartTextParam"))
class TextPart(TypedDict):
    text: str
    type: Literal["text"]


@with_config(_request_part("ChatCompletionContentPartRefusalParam"))
class RefusalPart(TypedDict):
    refusal: str
    type: Literal["refusal"]


@with_config(_request_part("ImageURL"))
class ImageURL(TypedDict):
    url: str
    detail: NotRequired[OrNull[Literal["auto", "low", "high"]]]


@with_config(_request_part("ChatCompletionContentPartImageParam"))
class ImagePart(TypedDict):
    image_url: ImageURL
    type: Literal["image_url"]


@with_config(_request_part("InputAudio"))
class InputAudio(TypedDict):
    data: str
    format: Literal["wav", "mp3"]


@with_config(_request_part("ChatCompletionContentPartInputAudioParam"))
class AudioPart(TypedDict):
    input_audio: InputAudio
    type: Literal["input_audio"]


@with_config(_request_part("FileFile"))
class FileReference(TypedDict):
    file_data: NotRequired[OrNull[str]]
    file_id: NotRequired[OrNull[str]]
    filename: NotRequired[OrNull[str]]


@with_config(_request_part("File"))
class FilePart(TypedDict):
    file: FileReference
    type: Literal["file"]


@with_config(_request_part("Audio"))
class AudioReference(TypedDict):
    id: str


@with_config(_request_part("FunctionCall"))
class FunctionCallParam(TypedDict):
    arguments: str
    name: str


@with_config(_request_part("Function"))
class FunctionParam(TypedDict):
    arguments: str
    name: str


@with_config(_request_part("ChatCompletionMessageFunctionToolCallParam"))
class FunctionToolCallParam(TypedDict):
    id: str
    function: FunctionParam
    type: Literal["function"]


@with_config(_request_part("Custom"))
class CustomParam(TypedDict):
    input: str
    name: str


@with_config(_request_part("ChatCompletionMessageCustomToolCallParam"))
class CustomToolCallParam(TypedDict):
    id: str
    custom: CustomParam
    type: Literal["custom"]


UserPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type"), _AnyOf()]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type"), _AnyOf()]
ToolCallParam = Annotated[FunctionToolCallParam | CustomToolCallParam, Field(discriminator="type"), _AnyOf()]


# Messages in a request


@with_config(_request_part("ChatCompletionDeveloperMessageParam"))
class DeveloperMessage(TypedDict):
    content: TextOr[TextPart]
    role: Literal["developer"]
    name: NotRequired[OrNull[str]]


@with_config(_request_part("ChatCompletionSystemMessageParam"))
class SystemMessage(TypedDict):
    content: TextOr[TextPart]
    role: Literal["system"]
    name: NotRequired[OrNull[str]]


@with_config(_request_part("ChatCompletionUserMessageParam"))
class UserMessage(TypedDict):
    content: TextOr[UserPart]
    role: Literal["user"]
    name: NotRequired[OrNull[str]]


@with_config(_request_part("ChatCompletionAssistantMessageParam"))
class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: NotRequired[TextOr[AssistantPart] | None]
    tool_calls: NotRequired[OrNull[list[ToolCallParam]]]
    refusal: NotRequired[str | None]
    name: NotRequired[OrNull[str]]
    audio: NotRequired[AudioReference | None]
    function_call: NotRequired[FunctionCallParam | None]


@with_config(_request_part("ChatCompletionToolMessageParam"))
class ToolMessage(TypedDict):
    content: TextOr[TextPart]
    role: Literal["tool"]
    tool_call_id: str


@with_config(_request_part("ChatCompletionFunctionMessageParam"))
class FunctionMessage(TypedDict):
    content: str | None
    name: str
    role: Literal["function"]


@with_config(_request_part("FunctionDefinition"))
class FunctionDefinition(TypedDict):
    name: str
    description: NotRequired[OrNull[str]]
    parameters: NotRequired[OrNull[dict[str, Any]]]
    strict: NotRequired[bool | None]


@with_config(_request_part("ChatCompletionFunctionToolParam"))
class _Tool(TypedDict):
    function: FunctionDefinition
    type: Literal["function"]


Tool = Annotated[_Tool, WrapValidator(_as_sent)]


# Parts of a response


@with_config(_response_part("TopLogprob"))
class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: NotRequired[list[int] | None]


@with_config(_response_part("ChatCompletionTokenLogprob"))
class TokenLogprob(TypedDict):
    token: str
    logprob: float
    top_logprobs: list[TopLogprob]
    bytes: NotRequired[list[int] | None]


@with_config(_response_part("ChoiceLogprobs"))
class ChoiceLogprobs(TypedDict):
    content: NotRequired[list[TokenLogprob] | None]
    refusal: NotRequired[list[TokenLogprob] | None]


@with_config(_response_part("AnnotationURLCitation"))
class UrlCitation(TypedDict):
    end_index: int
    start_index: int
    title: str
    url: str


@with_config(_response_part("Annotation"))
class Annotation(TypedDict):
    type: Literal["url_citation"]
    url_citation: UrlCitation


@with_config(_response_part("ChatCompletionAudio"))
class Audio(TypedDict):
    id: str
    data: str
    expires_at: int
    transcript: str


@with_config(_response_part("FunctionCall"))
class FunctionCall(TypedDict):
    arguments: str
    name: str


@with_config(_response_part("Function"))
class Function(TypedDict):
    arguments: str
    name: str


@with_config(_response_part("ChatCompletionMessageFunctionToolCall"))
class FunctionToolCall(TypedDict):
    id: str
    function: Function
    type: Literal["function"]


@with_config(_response_part("Custom"))
class Custom(TypedDict):
    input: str
    name: str


@with_config(_response_part("ChatCompletionMessageCustomToolCall"))
class CustomToolCall(TypedDict):
    id: str
    custom: Custom
    type: Literal["custom"]


ToolCall = Annotated[FunctionToolCall | CustomToolCall, Field(discriminator="type"), _AnyOf()]


@with_config(_response_part("ChatCompletionMessage"))
class ChoiceMessage(TypedDict):
    role: Literal["assistant"]
    content: NotRequired[str | None]
    refusal: NotRequired[str | None]
    tool_calls: NotRequired[list[ToolCall] | None]
    annotations: NotRequired[list[Annotation] | None]
    audio: NotRequired[Audio | None]
    function_call: NotRequired[FunctionCall | None]


class Choice(BaseModel):
    """A sampled turn, as the engine returned it."""

    model_config = _response_part("Choice")

    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
    index: int
    logprobs: ChoiceLogprobs | None = None
    message: ChoiceMessage
    token_ids: Hidden[list[int]] = None
    """The sampled ids, the stop token included (vLLM's `return_token_ids`)."""
    prompt_token_ids: Hidden[list[int]] = None
    """The ids that the turn was conditioned on."""
    policy_version: Hidden[PolicyStep] = None
    """The step of the version that sampled the turn, as the service writes it into every choice."""
    policy_token_spans: Hidden[Any] = None
    """The same for each span of the sampled ids, which openpipe-art keeps of a stream."""
    sampled_with: Hidden[Any] = None
    """The options that made it sample from another distribution than the policy's, as the service writes them."""

    _columns: TokenColumns | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _no_unread_data(self, info: ValidationInfo) -> Self:
        if isinstance(info.context, CutLogprobs):
            self._put_columns(info.context)
        if not is_for_log(info):
            trains_nothing = not self.num_logprobs
            if trains_nothing and self.logprobs:
                reject_other_logprobs(self.logprobs)
            reject_unread("choice", self.model_extra, trains_nothing)
        return self

    def _put_columns(self, cut: CutLogprobs) -> None:
        index = (self.model_extra or {}).pop(cut.key, None)
        if index is not None and self.logprobs is None:
            self._columns = cut.columns[index]

    @property
    def version(self) -> int | None:
        """The step of the oldest version that sampled a token of the turn; None if unknown."""
        return self.policy_version if self.policy_version is not None else span_version(self.policy_token_spans)

    @property
    def num_logprobs(self) -> int:
        """The number of sampled tokens with a logprob."""
        return len(self._entries if self._columns is None else self._columns)

    @property
    def token_columns(self) -> TokenColumns:
        """One entry per sampled token in each column; none if the choice has no logprobs."""
        if self._columns is not None:
            return self._columns
        entries = self._entries
        return TokenColumns(
            "content" if (self.logprobs or {}).get("content") else "refusal",
            [entry["token"] for entry in entries],
            [entry["logprob"] for entry in entries],
            [entry.get("bytes") for entry in entries],
        )

    @property
    def token_logprobs(self) -> list[TokenLogprob]:
        """One entry per sampled token; empty if the choice has none."""
        if self._columns is None:
            return self._entries
        columns = zip(self._columns.tokens, self._columns.logprobs, self._columns.bytes, strict=True)
        return [
            {"token": token, "logprob": logprob, "top_logprobs": [], "bytes": None if raw is None else list(raw)}
            for token, logprob, raw in columns
        ]

    @property
    def _entries(self) -> list[TokenLogprob]:
        logprobs = self.logprobs or {}
        return logprobs.get("content") or logprobs.get("refusal") or []


def span_version(spans: Any) -> int | None:
    """Return the lowest policy version in `policy_token_spans`; None for anything else."""
    versions = (
        [span.get("policy_version") for span in spans if isinstance(span, dict)] if isinstance(spans, list) else []
    )
    return min((one for one in versions if type(one) is int and 0 <= one <= MAX_STEP), default=None)


ROLES = ("developer", "system", "user", "assistant", "tool", "function")


def _kind(value: Any) -> str | None:
    """Return `choice`, the role of a message, or None."""
    if isinstance(value, Choice):
        return "choice"
    if not isinstance(value, dict):
        return None
    has_choice_key = "finish_reason" in value or "message" in value
    if has_choice_key and ("role" not in value or ("finish_reason" in value and "message" in value)):
        return "choice"
    role = value.get("role")
    return role if role in ROLES else None


def _role(value: Any) -> str | None:
    role = value.get("role") if isinstance(value, dict) else None
    return role if role in ROLES else None


_Message = (
    Annotated[DeveloperMessage, WrapValidator(_as_sent), Tag("developer")]
    | Annotated[SystemMessage, WrapValidator(_as_sent), Tag("system")]
    | Annotated[UserMessage, WrapValidator(_as_sent), Tag("user")]
    | Annotated[AssistantMessage, WrapValidator(_sent_by_assistant), Tag("assistant")]
    | Annotated[ToolMessage, WrapValidator(_as_sent), Tag("tool")]
    | Annotated[FunctionMessage, WrapValidator(_as_sent), Tag("function")]
)
_A_MESSAGE = "Input should be a message whose role is one of " + ", ".join(ROLES)

Message = Annotated[
    _Message, Discriminator(_role, custom_error_type="message", custom_error_message=_A_MESSAGE), _AnyOf()
]
MessageOrChoice = Annotated[
    _Message | Annotated[Choice, Tag("choice")],
    Discriminator(
        _kind,
        custom_error_type="message_or_choice",
        custom_error_message=_A_MESSAGE + ", or a choice, which has finish_reason and message",
    ),
    _AnyOf(),
]
