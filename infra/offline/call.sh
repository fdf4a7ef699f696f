#!/usr/bin/env bash
# One call on the machine: unpack what was carried, unless an earlier call has, and run suites of GPU jobs on all GPUs
# for so many seconds, unpacking included. What earlier calls have measured at the same commit is taken up.
#   call.sh RESULTS SECONDS SUITE...
# M4V_OFFLINE names the folder that stays on the machine between calls.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
kept=${M4V_OFFLINE:-/tmp/m4v}
[ $# -ge 3 ] || { sed -n 2,6p "$0" >&2; exit 2; }
out=$1 limit=$2; shift 2
if [ ! -x "$kept/python" ]; then
  shopt -s nullglob
  bash "$here/unpack.sh" "$kept" "$root"/.carry/site*.tar.xz "$root"/.carry/kernels*.tar.xz "$root"/.carry/*.whl
fi
mkdir -p "$out" "$kept/results"
cp -r "$kept/results/." "$out"
cd "$root"
code=0
"$kept/python" -m tests.benchmarks.gpu --suite "$@" --spread --budget-s $((limit - SECONDS)) --out "$out" || code=$?
cp -r "$out/." "$kept/results"
exit $code
