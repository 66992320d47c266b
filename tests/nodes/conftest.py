"""Tests on several nodes share helpers with the tests of other folders."""

import sys
from pathlib import Path

for folder in ("cluster", "cluster/jobs", "e2e", "faults"):
    sys.path.append(str(Path(__file__).parents[1] / folder))
