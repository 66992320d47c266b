"""Engine replicas that keep samples as real ones do, and compute them as a test says."""

import asyncio

import numpy as np
from asgi_calls import call_app

from tandem.cluster.engine.metrics.usage import CHARGED
from tandem.cluster.engine.requests.headers import DIGEST_HEADER, REPLICA_HEADER
from tandem.cluster.engine.samples.futures import SampleLimits
from tandem.cluster.engine.samples.sample_request import EngineLimits, SampleRequest
from tandem.cluster.engine.samples.sampled import Sampled, SampledTokens
from tandem.cluster.engine.samples.samples_app import PREFIX, Samples
from tandem.cluster.errors import EngineLostError

LIMITS = EngineLimits(context=64, vocab_size=512, max_logprobs=20, max_samples=64)


class SampleEngines:
    """An EngineClient. Samples echo the prompt's last token; `before` runs before each."""

    def __init__(self, names=("r1",), **limits):
        self.replicas = {name: self._new(**limits) for name in names}
        self.asked, self.charged = [], []
        """(path, replica) of each request, and (digest, charged) of each sample."""
        self.before = self._nothing
        self.on_the_way = self._nothing
        """Runs with the path of each request before a replica gets it."""
        self.on_the_way_back = self._nothing
        """Runs with the path of each request once a replica has answered it."""

    def _new(self, **limits):
        return Samples(lambda body: SampleRequest.of(body, LIMITS), self._sample, "tandem/tiny", SampleLimits(**limits))

    async def _nothing(self, _):
        pass

    async def _sample(self, request, digest, id, progress):
        self.charged.append((digest, CHARGED.get()))
        await self.before(progress)
        tokens = np.full(request.max_tokens or 3, request.prompt[-1], np.int32)
        one = SampledTokens(tokens, np.zeros(len(tokens), np.float32), None, True)
        scores = np.full(len(request.prompt), -1, np.float32)
        scores[0] = np.nan
        return Sampled([one] * request.num_samples, 0, scores if request.prompt_logprobs else None).to_protobuf()

    async def serves(self, base_model):
        return bool(self.replicas)

    async def http(self, base_model, method, path, headers, body, digest, replica=None):
        assert path.startswith(PREFIX)
        if replica is not None and replica not in self.replicas:
            raise EngineLostError(f"{replica} isn't there")
        while not self.replicas:
            await asyncio.sleep(0.01)
        name = replica or next(iter(self.replicas))
        await self.on_the_way(path)
        self.asked.append((path, name))
        async for item in call_app(self.replicas[name], path, [*headers, (DIGEST_HEADER, digest)], body):
            if isinstance(item, tuple):
                await self.on_the_way_back(path)
            yield (item[0], [*item[1], (REPLICA_HEADER, name)]) if isinstance(item, tuple) else item

    async def close(self):
        for samples in self.replicas.values():
            await samples.futures.close()
