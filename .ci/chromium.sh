#!/usr/bin/env bash
# A Chromium for the test of the labelling page where there is none: the distribution's own. Run again, it does nothing.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
command -v apt-get >/dev/null || { echo "no Chromium, and no apt-get to install one with" >&2; exit 1; }
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -qq -y --no-install-recommends chromium >/dev/null
