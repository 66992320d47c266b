#!/usr/bin/env bash
# Install Debian's chromium, in which tests/web look at the page, if there is no browser and this user may install one.
set -euo pipefail
for name in "${TANDEM_CHROMIUM:-}" chromium chromium-browser google-chrome; do
  if [ -n "$name" ] && command -v "$name" >/dev/null; then exit; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  echo "Installing chromium for the tests of the page"
  export DEBIAN_FRONTEND=noninteractive
  if apt-get update >"$log" 2>&1 && apt-get install --yes --no-install-recommends chromium >>"$log" 2>&1; then exit; fi
  tail -n 5 "$log" >&2
fi
echo "There is no chromium: the tests of the page in a browser will be skipped, and fail in CI. Install it (Debian: apt-get install chromium), or name a browser in TANDEM_CHROMIUM." >&2
