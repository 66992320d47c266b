"""Options that the deployments of the Serve application share."""

from __future__ import annotations

# Serve replaces a replica after three failures in a row: within a minute for one that is stopped.
HEALTH_CHECK_PERIOD_S = 5.0
HEALTH_CHECK_TIMEOUT_S = 10.0
STOP_MARGIN_S = 15.0  # beyond the grace of a running job: to return it to the queue and to stop the learners
MAX_REQUESTS = 1024  # open requests of one engine replica; beyond it, requests wait in Serve's queue
MAX_API_REQUESTS = 16_384  # of one API replica, where requests for results wait, thousands of them at once
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Environment of the replicas that compute little: on few cores, more threads slow down the engine and the learners."""
