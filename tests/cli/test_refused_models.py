"""A base model that is rejected ends the start of the service with one sentence."""

from tandem.cli.deployment import refused

TRACEBACK = """A replica failed to start with exception. Retrying 2 more time(s). Error:
ray::ServeReplica:tandem:coordinator.initialize_and_get_metadata() (pid=7)
  File "base_models.py", line 80, in write_initial_version
tandem.rl.errors.PolicyError: mistral has layers of sliding_attention, which packed sequences don't support.

The above exception was the direct cause of the following exception:

tandem.rl.errors.PolicyError: Base model my/model can't be trained: mistral has layers of sliding_attention.
"""


def test_a_refusal_is_found_in_what_serve_says():
    refusal = refused(["", "Deploying.", TRACEBACK])
    assert refusal is not None and "sliding_attention" in refusal and "\n" not in refusal


def test_other_failures_are_none():
    assert refused(["", "RuntimeError: the store is away"]) is None
    assert refused([]) is None
