#!/usr/bin/env bash
# Create .venv with uv. The Makefile sets EXTRA (cpu or gpu), PYTHON and CONSTRAINTS; deploy/Dockerfile also sets
# EXTRAS, because an image needs no tests.
set -euo pipefail
WITH_ENVIRONMENTS=${EXTRAS:+no}  # optional, because it may fail to install; left out if EXTRAS is set
EXTRAS=${EXTRAS:-postgres,test,bench}

bootstrap_uv() {
  if command -v uv; then return; fi
  if [ ! -x .bootstrap/bin/uv ]; then
    echo "uv isn't installed; installing it into .bootstrap" >&2
    "${PYTHON:-python3}" -m venv .bootstrap
    .bootstrap/bin/python -m pip install --quiet --disable-pip-version-check uv >&2
  fi
  echo "$PWD/.bootstrap/bin/uv"
}

if [ "${1:-}" = --print-uv ]; then bootstrap_uv; exit; fi

if [ -z "${PYTHON:-}" ]; then
  echo "Tandem needs Python 3.11 or 3.12 and found neither. Install one or name its path: make install PYTHON=/path/to/python3.12" >&2
  exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])'; then
  echo "Tandem needs Python 3.11 or 3.12; $PYTHON is $("$PYTHON" --version 2>&1). Name another one: make install PYTHON=python3.12" >&2
  exit 1
fi

export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1}  # trust the certificates of the machine, as pip does
UV=$(bootstrap_uv)
if [ -x .venv/bin/python ] && [ "$(.venv/bin/python -V)" != "$("$PYTHON" -V)" ]; then
  echo "Replacing .venv of $(.venv/bin/python -V) with one of $("$PYTHON" -V)"
  rm -rf .venv
fi
[ -x .venv/bin/python ] || "$UV" venv --quiet --python "$("$PYTHON" -c 'import sys; print(sys.executable)')" .venv

# pip may be configured with local packages, such as a CPU torch; uv doesn't read its configuration.
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$PYTHON" -m pip config get global.find-links 2>/dev/null || true)}}
install() {
  # Compile once. With PYTHONDONTWRITEBYTECODE, each process would otherwise compile at its start: minutes for vLLM.
  UV_FIND_LINKS="$links" "$UV" pip install --compile-bytecode --quiet --python .venv/bin/python -e ".[$EXTRA,${1}]" --constraint "$CONSTRAINTS" "${@:2}"
}
install_environments() {
  if [ "$WITH_ENVIRONMENTS" = no ] || install "$EXTRAS,environments,verifiers" "$@" 2>>"$log"; then return; fi
  echo "Reasoning Gym and verifiers aren't installed: they need a C compiler and Python's headers (Debian: build-essential, python3-dev). Everything else works." >&2
}
python_of_clients() {  # the newest openpipe-art needs 3.12; pyenv's commands exist also for versions that aren't selected
  for candidate in python3.12 python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[23]*/bin/python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 12), (3, 13)])' 2>/dev/null; then echo "$candidate"; return; fi
  done
}
install_clients() {  # the environment of clients that don't fit beside vLLM; only tests use it
  if [[ ",$EXTRAS," != *,test,* ]]; then return; fi
  local python
  python=$(python_of_clients)
  if [ -z "$python" ]; then
    echo "No Python 3.12 or 3.13 was found: the tests of the newest openpipe-art and of agent frameworks will be skipped. Everything else works." >&2
    return
  fi
  [ -x .venv-clients/bin/python ] || "$UV" venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" .venv-clients
  "$UV" pip install --compile-bytecode --quiet --python .venv-clients/bin/python -r requirements/clients.in --constraint requirements/constraints-clients.txt
}

install_page() {  # the page at /, and a browser for its tests; a Dockerfile copies the sources later
  if [ -f serve/web/build.py ]; then .venv/bin/python serve/web/build.py --optional; fi
  if [[ ",$EXTRAS," = *,test,* ]]; then bash scripts/install_browser.sh; fi
}

echo "Installing Tandem for $EXTRA into .venv"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ "$EXTRA" = gpu ]; then
  install "$EXTRAS"
  install_environments
  install_clients
  install_page
  exit
fi
# Try pip's configured places first, then PyTorch's index of CPU builds.
for options in "" "--torch-backend cpu"; do
  if install "$EXTRAS" $options 2>>"$log"; then
    install_environments $options
    install_clients
    install_page
    exit
  fi
done
cat "$log" >&2
cat >&2 <<'TEXT'

The installation failed. If torch==2.13.0+cpu wasn't found: PyPI has no CPU build of torch. Either
  - allow access to PyTorch's index of CPU builds (download.pytorch.org/whl/cpu), or
  - put the wheel torch-2.13.0+cpu for your Python into a directory and run: PIP_FIND_LINKS=/that/directory make install
TEXT
exit 1
