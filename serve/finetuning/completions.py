"""Chat completions of the service's own models for fine-tuning: rollouts, evaluations and judges, without HTTP."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from pydantic_core import from_json, to_json

from tandem.cluster.engine.metrics.usage import Charged
from tandem.cluster.engine.requests.headers import CHARGED_HEADER, MODEL_HEADER, VERSION_HEADER
from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError
from tandem.rl.graders.errors import GraderError
from tandem.serve.api.engine.call import EngineCall
from tandem.serve.api.quick_reads import read_quickly
from tandem.serve.api.services import CompletionServices
from tandem.serve.errors import ServeError, UnavailableError
from tandem.serve.finetuning.models import parse_start
from tandem.serve.store.policies.versions import PinnedPolicy

PATH = "/v1/chat/completions"


class CompletionRefusedError(Exception):
    """The engine rejected a request, or gave no answer to it. The message is the engine's."""


class OwnCompletions:
    """The models that an entity may use. Use it in one event loop."""

    def __init__(self, services: CompletionServices, entity: str, key_id: str = "", job_id: str = ""):
        """The tokens are charged to the entity, and to the key or the fine-tuning job that asks."""
        self._services, self._entity, self._key_id, self._job_id = services, entity, key_id, job_id

    async def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chat completion for a body that doesn't stream.

        Raises CompletionRefusedError, and ServeError or EngineDeadError for what may be otherwise later.
        """
        name = str(body["model"])
        policy = await read_quickly(self._services.store, self._pin, name)
        charged = Charged("sample", self._entity, self._key_id, policy.model_id, job_id=self._job_id)
        headers = [
            ("content-type", "application/json"),
            ("x-request-id", f"fine-tuning-{uuid.uuid4().hex}-{random.getrandbits(32):08x}"),
            (MODEL_HEADER, quote(name)),
            (VERSION_HEADER, str(policy.step)),
            (CHARGED_HEADER, charged.header()),
        ]
        stream = self._services.engine.http(policy.base_model, "POST", PATH, headers, to_json(body), policy.digest)
        call = EngineCall(stream, self._services.config.deadlines.inference_s)
        try:
            status, _ = await call.start()
            content = await call.content()
        finally:
            await call.close()
        answer = _parsed(content)
        if status == 200 and answer.get("choices"):
            return answer
        reason = (answer.get("error") or {}).get("message") or f"the engine answered with status {status}"
        if status >= 500:
            raise UnavailableError(f"The engine failed: {reason}", "engine_failed")
        raise CompletionRefusedError(reason)

    def _pin(self, name: str) -> PinnedPolicy:
        versions = self._services.store.versions
        start = parse_start(self._services.base_models, self._entity, name)
        if start is None:
            return versions.resolve_base(name)
        return versions.resolve(self._entity, start.project, start.name, start.step)

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Do the same for a grader. Raises GraderError."""
        try:
            return await self(body)
        except (ServeError, CompletionRefusedError, EngineDeadError, AdapterUnavailableError) as error:
            raise GraderError("model_grader_server_error", f"the judge {body['model']}: {error}") from error


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        value: Any = from_json(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
