"""Wire types of exchanges: the requests and answers of an agent, as openpipe-art 0.5.20 and later capture them.

A request and an answer stay as they are until the policy's own are converted (`conversion`): those of other models,
like a judge, may look as they like.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, PrivateAttr, ValidationInfo, model_validator

from tandem.rl.tokens.token_columns import CutLogprobs
from tandem.rl.unread_fields import reject_unread

Protocol = Literal["chat_completions", "completions", "responses", "messages"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


def _utc(value: datetime) -> datetime:
    """Return an aware time. One without a zone is UTC, as for the client."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


Time = Annotated[datetime, AfterValidator(_utc)]


class Exchange(BaseModel):
    """A request and its whole answer, also of a stream."""

    model_config = ConfigDict(extra="allow")

    start_time: Time
    end_time: Time
    request: dict[str, Any]
    response: dict[str, Any]
    model: str | None = None

    _cut: CutLogprobs | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _keep_cut_logprobs(self, info: ValidationInfo) -> Self:
        if isinstance(info.context, CutLogprobs):
            self._cut = info.context
        reject_unread("exchange", self.model_extra)
        return self

    @property
    def cut(self) -> CutLogprobs | None:
        """The logprobs that were cut out of the answer's JSON, if any were."""
        return self._cut

    @property
    def model_name(self) -> str | None:
        """The model that was asked for, else the one that answered."""
        names = (self.request.get("model"), self.response.get("model"), self.model)
        return next((name for name in names if isinstance(name, str)), None)


class Exchanges(BaseModel):
    """The exchanges of a trajectory. `of_policy` tells which model is trained."""

    model_config = ConfigDict(extra="allow")

    chat_completions: list[Exchange] = []
    completions: list[Exchange] = []
    responses: list[Exchange] = []
    messages: list[Exchange] = []

    _policy: str | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _no_other_protocol(self) -> Self:
        reject_unread("exchanges", self.model_extra)
        return self

    def __len__(self) -> int:
        return sum(len(self.of(protocol)) for protocol in PROTOCOLS)

    def of(self, protocol: Protocol) -> list[Exchange]:
        """Return the exchanges of a protocol, as sent."""
        exchanges: list[Exchange] = getattr(self, protocol)
        return exchanges

    def in_order(self) -> Iterator[tuple[Protocol, int, Exchange]]:
        """Iterate over (protocol, index in its list, exchange) by time."""
        found = [(protocol, index, one) for protocol in PROTOCOLS for index, one in enumerate(self.of(protocol))]
        return iter(sorted(found, key=lambda one: (one[2].start_time, one[2].end_time)))

    @property
    def policy(self) -> str | None:
        """The trained model's name, like entity/project/name."""
        return self._policy

    def of_policy(self, policy: str) -> None:
        """Say which model is trained. The body of a job doesn't, only its model's id."""
        self._policy = policy
