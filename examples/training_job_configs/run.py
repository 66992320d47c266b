"""Save a configuration that trains on two workers, run it, and follow its logs to the end.

    export TANDEM_URL=http://127.0.0.1:8000 TANDEM_API_KEY=tdm_...
    python examples/training_job_configs/run.py --bucket ~/.tandem/projects/default/example

The key's project must be allowed to run code, and `--bucket` must be a folder in the project's bucket_root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
OPEN = (1, 4, 7, 8, 9)  # init, submitting, waiting, running, stopping
COMPLETED = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", type=Path, required=True, help="folder of a bucket that the project may use")
    parser.add_argument("--project", default="default", help="the key's project")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--spec", type=int, default=1, help="spec_id of one worker; GET job/resource-specs lists them")
    options = parser.parse_args()
    for name in ("code", "data"):
        shutil.copytree(HERE / name, options.bucket.expanduser() / name, dirs_exist_ok=True)
    bucket = f"/{options.bucket.name}"

    headers = {"X-Auth-Token": os.environ["TANDEM_API_KEY"]}
    base_url = f"{os.environ.get('TANDEM_URL', 'http://127.0.0.1:8000')}/v1/{options.project}"
    http = httpx.Client(base_url=base_url, headers=headers, timeout=60)
    config = {
        "config_name": f"two-workers-{int(time.time())}",
        "config_desc": "Fits a line with torch.distributed",
        "worker_server_num": options.workers,
        "spec_id": options.spec,
        "engine_id": 2,
        "app_url": f"{bucket}/code/",
        "boot_file_url": f"{bucket}/code/boot.py",
        "data_url": f"{bucket}/data/",
        "parameter": [{"label": "learning_rate", "value": "0.1"}, {"label": "num_steps", "value": "200"}],
        "train_url": f"{bucket}/out/",
        "log_url": f"{bucket}/logs/",
    }
    ask(http, "POST", "/training-job-configs", json=config)
    name = config["config_name"]
    job = ask(http, "POST", "/training-jobs", json={"job_name": name, "config": {"config_name": name}})
    version = follow(http, f"/training-jobs/{job['job_id']}/versions/{job['version_id']}")
    print(version["status_name"], version["error_message_of_job"] or "")
    return 0 if version["status"] == COMPLETED else 1


def follow(http: httpx.Client, path: str) -> dict[str, Any]:
    """Print the workers' output as it appears, until the job has ended."""
    seen: dict[str, int] = {}
    while True:
        version = ask(http, "GET", path)
        for file in ask(http, "GET", f"{path}/log/file-names")["log_file_list"]:
            while True:
                params = {"log_file": file, "order": "asc", "base_line": seen.get(file, 0), "lines": 500}
                page = ask(http, "GET", f"{path}/aom-log", params=params)
                if not page["lines"]:
                    break
                seen[file] = page["end_line"]
                print("".join(f"{file}: {line}\n" for line in page["content"].splitlines()), end="", flush=True)
        if version["status"] not in OPEN:
            return version
        time.sleep(1)


def ask(http: httpx.Client, method: str, path: str, **options: Any) -> dict[str, Any]:
    body: dict[str, Any] = http.request(method, path, **options).json()
    if not body["is_success"]:
        sys.exit(f"{body['error_code']}: {body['error_message']}")
    return body


if __name__ == "__main__":
    sys.exit(main())
