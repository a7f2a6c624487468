#!/usr/bin/env bash
# A compiler for arm64 and an emulator of it, for the native tests on NEON. Run again, it does nothing.
set -euo pipefail
[ "$(uname -m)" != aarch64 ] || exit 0
if command -v qemu-aarch64 aarch64-linux-gnu-g++ >/dev/null; then exit 0; fi
command -v apt-get >/dev/null || { echo "no compiler or emulator for arm64, and no apt-get to install them with" >&2; exit 1; }
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -qq -y --no-install-recommends qemu-user g++-aarch64-linux-gnu >/dev/null
