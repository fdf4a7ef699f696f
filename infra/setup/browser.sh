#!/usr/bin/env bash
# Page tests drive a headless Chromium that is already there, or Debian's package.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium fonts-dejavu-core >/dev/null
  exit 0
fi
echo "browser: no Chromium found. Next: install chromium with your package manager" >&2
exit 10
