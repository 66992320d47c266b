#!/usr/bin/env bash
# Write the pinned versions of both installations. UV is the path of uv.
set -euo pipefail
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1}
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}}
for extra in cpu gpu; do
  UV_FIND_LINKS="$links" "$UV" pip compile --quiet --universal --python-version 3.11 pyproject.toml \
    --extra "$extra" --extra postgres --extra s3 --extra environments --extra verifiers --extra test --extra bench --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
    --upgrade --output-file "requirements/constraints-$extra.txt"
done
"$UV" pip compile --quiet --universal --python-version 3.12 requirements/clients.in --no-annotate --no-header --no-emit-index-url \
  --upgrade --output-file requirements/constraints-clients.txt
