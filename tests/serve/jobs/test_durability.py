"""Accepted means durable: an accepted job survives the death of the process that accepted it."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from tandem.cluster.artifacts import Artifacts
from tandem.serve.store.store import Store

ACCEPT_AND_DIE = """
import os, signal, sys
from functools import partial
from tandem.cluster.artifacts import Artifacts
from tandem.serve.jobs.blobs import stored
from tandem.serve.ingest.spool import Spool
from tandem.serve.store.store import Store
url, artifacts, model_id = sys.argv[1], Artifacts(sys.argv[2]), sys.argv[3]
spool = Spool(artifacts.spool_dir)
spool.write(b"what was sent")
spool.finish()
with stored(artifacts, "payloads/job", partial(artifacts.put_blob_file, spool.path)) as key:
    Store(url).jobs.add("6f0a4b06-26ca-4d3c-8b8a-7d8c2a5c1b3e", model_id, key, {}, "0" * 64)
os.kill(os.getpid(), signal.SIGKILL)
"""
OPEN = """
import sys
from tandem.serve.store.store import Store
Store(sys.argv[1]).claims.put_initial_version("base", sys.argv[2])
"""


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ})


@pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
def test_an_accepted_job_survives_kill_9(store_url, tmp_path, store, add_model, claim):
    model = add_model()
    died = run(ACCEPT_AND_DIE, store_url, str(tmp_path / "artifacts"), model.id)
    assert died.returncode == -signal.SIGKILL, died.stderr
    claimed = claim()
    assert claimed.model_id == model.id
    payload = Artifacts(str(tmp_path / "artifacts")).read_blob(claimed.payload_key)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(payload) == b"what was sent"


@pytest.mark.parametrize("new_url", ["sqlite", "postgresql"], indirect=True)
def test_processes_that_start_together_share_a_new_store(new_url):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda digest: run(OPEN, new_url, digest), "abc"))
    assert [result.returncode for result in results] == [0, 0, 0], [result.stderr for result in results]
    store = Store(new_url)
    assert store.versions.initial_digests()["base"] in "abc"
    store.close()
