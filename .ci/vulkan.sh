#!/usr/bin/env bash
# A Vulkan driver for the WebGPU tests where there is none: Mesa's lavapipe, a GPU in software.
# Debian 12's own Mesa (22.3) lacks what Dawn asks for; that of its backports (25) has it, subgroups and shader-f16 included.
# The suite comes from the mirror that the machine's own sources name. Run again, it does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

adapter() { # is there one that the package can open?
  node --input-type=module -e '
    import { create } from "webgpu";
    const adapter = await create([]).requestAdapter().catch(() => null);
    process.exit(adapter ? 0 : 1);' >/dev/null 2>&1
}

if adapter; then exit 0; fi
command -v apt-get >/dev/null || { echo "no Vulkan driver, and no apt-get to install one with" >&2; exit 1; }
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
export DEBIAN_FRONTEND=noninteractive
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
from=()
if [ "$codename" = bookworm ]; then
  mirror=$({ cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true; } |
    awk '/^URIs:/ { print $2; exit } /^deb / { for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) { print $i; exit } }')
  [ -n "$mirror" ] || { echo "apt's sources name no Debian mirror" >&2; exit 1; }
  key=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$key] $mirror $codename-backports main" | $as_root tee /etc/apt/sources.list.d/backports.list >/dev/null
  from=(-t "$codename-backports")
fi
$as_root apt-get update -qq
$as_root apt-get install -qq -y --no-install-recommends "${from[@]}" mesa-vulkan-drivers libvulkan1 >/dev/null
adapter || { echo "mesa-vulkan-drivers is installed, and WebGPU still finds no adapter" >&2; exit 1; }
