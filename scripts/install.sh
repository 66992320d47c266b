#!/usr/bin/env bash
# Makes .venv with uv. Called by the Makefile with EXTRA (cpu or gpu), PYTHON and CONSTRAINTS; by deploy/Dockerfile
# also with EXTRAS, because an image needs no tests.
set -euo pipefail
WITH_ENVIRONMENTS=${EXTRAS:+no}  # the extra that may fail to install, unless the extras are named
EXTRAS=${EXTRAS:-postgres,test,bench}

bootstrap_uv() {
  if command -v uv; then return; fi
  if [ ! -x .bootstrap/bin/uv ]; then
    echo "uv isn't installed; putting it into .bootstrap" >&2
    "${PYTHON:-python3}" -m venv .bootstrap
    .bootstrap/bin/python -m pip install --quiet --disable-pip-version-check uv >&2
  fi
  echo "$PWD/.bootstrap/bin/uv"
}

if [ "${1:-}" = --print-uv ]; then bootstrap_uv; exit; fi

if [ -z "${PYTHON:-}" ]; then
  echo "Tandem needs Python 3.11 or 3.12 and found neither. Install one, or name it: make install PYTHON=/path/to/python3.12" >&2
  exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])'; then
  echo "Tandem needs Python 3.11 or 3.12; $PYTHON is $("$PYTHON" --version 2>&1). Name another: make install PYTHON=python3.12" >&2
  exit 1
fi

export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1}  # like pip, trust what the machine trusts
UV=$(bootstrap_uv)
if [ -x .venv/bin/python ] && [ "$(.venv/bin/python -V)" != "$("$PYTHON" -V)" ]; then
  echo "Making .venv anew for $("$PYTHON" -V): it was of $(.venv/bin/python -V)"
  rm -rf .venv
fi
[ -x .venv/bin/python ] || "$UV" venv --quiet --python "$("$PYTHON" -c 'import sys; print(sys.executable)')" .venv

# pip may know local packages, a CPU torch among them; uv doesn't read pip's configuration.
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$PYTHON" -m pip config get global.find-links 2>/dev/null || true)}}
install() {
  # Compiled now, or, where Python is told to write no bytecode, at every start of every process: minutes for vLLM.
  UV_FIND_LINKS="$links" "$UV" pip install --compile-bytecode --quiet --python .venv/bin/python -e ".[$EXTRA,${1}]" --constraint "$CONSTRAINTS" "${@:2}"
}
install_environments() {
  if [ "$WITH_ENVIRONMENTS" = no ] || install "$EXTRAS,environments" "$@" 2>>"$log"; then return; fi
  echo "Reasoning Gym was left out: it needs a C compiler and Python's headers (Debian: build-essential, python3-dev). All else works." >&2
}

echo "Installing Tandem for $EXTRA into .venv"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ "$EXTRA" = gpu ]; then
  install "$EXTRAS"
  install_environments
  exit
fi
# First where pip is already told to look, then PyTorch's own index of CPU builds.
for options in "" "--torch-backend cpu"; do
  if install "$EXTRAS" $options 2>>"$log"; then
    install_environments $options
    exit
  fi
done
cat "$log" >&2
cat >&2 <<'TEXT'

The installation failed. If it is torch==2.13.0+cpu that wasn't found: the CPU build of torch is not on PyPI. Either
  - allow access to PyTorch's index of CPU builds (download.pytorch.org/whl/cpu), or
  - put the wheel torch-2.13.0+cpu for your Python into a directory and run: PIP_FIND_LINKS=/that/directory make install
TEXT
exit 1
