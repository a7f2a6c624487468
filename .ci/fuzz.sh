#!/usr/bin/env bash
# A clang with libFuzzer, for the fuzzing of the C interface. Run again, it does nothing.
set -euo pipefail
if command -v clang++ >/dev/null && ls "$(clang++ -print-runtime-dir)" | grep -q fuzzer; then exit 0; fi
command -v apt-get >/dev/null || { echo "no clang with libFuzzer, and no apt-get to install it with" >&2; exit 1; }
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -qq -y --no-install-recommends clang libclang-rt-dev >/dev/null
