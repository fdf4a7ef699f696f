#!/usr/bin/env bash
# On the machine without a network: unpack archives of pack.py and wheels into a folder, write its `python` and say how
# to use it. What lies in the folder before stays.
#   unpack.sh FOLDER ARCHIVE_OR_WHEEL...
#   FOLDER/python -m tests.benchmarks.gpu --suite first --out results
# PYTHON names the machine's interpreter, the one that has torch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
PYTHON=${PYTHON:-python3}
fail() { echo "unpack: $1. Next: $2" >&2; exit 10; }
[ $# -ge 2 ] || { sed -n 2,6p "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd); shift
site=$folder/site
mkdir -p "$site"
for given in "$@"; do
  [ -f "$given" ] || fail "$given is not there" "carry it along"
  case "$given" in
    *.tar.xz) "$PYTHON" -m tarfile -e "$given" "$site" ;;  # xz itself may be missing
    *.whl) "$PYTHON" -m zipfile -e "$given" "$site" ;;
    *) fail "$given is neither a .tar.xz nor a .whl" "infra/offline/pack.py" ;;
  esac
done
if [ -n "$(find "$site" -name '*.folded' -print -quit)" ]; then
  PYTHONPATH=$site "$PYTHON" "$here/folding.py" "$site"
fi
cat > "$folder/python" <<WRAPPER
#!/usr/bin/env bash
# Written by infra/offline/unpack.sh: the machine's Python with the unpacked packages and this checkout.
export PYTHONPATH="$root:$site\${PYTHONPATH:+:\$PYTHONPATH}"
export HF_HUB_OFFLINE=1 DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false PYTHONUNBUFFERED=1 DS_BUILD_OPS=0
export TRITON_CACHE_AUTOTUNING=1 M4V_HOME="\${M4V_HOME:-$folder/home}"
export TRITON_CACHE_DIR="\${TRITON_CACHE_DIR:-$folder/triton}" TORCHINDUCTOR_CACHE_DIR="\${TORCHINDUCTOR_CACHE_DIR:-$folder/inductor}"
# Not a worker for each core: some twenty processes compile side by side.
export TORCHINDUCTOR_COMPILE_THREADS="\${TORCHINDUCTOR_COMPILE_THREADS:-8}"
[ -d "$root/.carry/oracles" ] && export M4V_ORACLES="\${M4V_ORACLES:-$root/.carry/oracles}"
[ -d "$root/.carry/assets" ] && export M4V_ASSETS="\${M4V_ASSETS:-$root/.carry/assets}"
exec $(printf %q "$(command -v "$PYTHON")") "\$@"
WRAPPER
chmod +x "$folder/python"
"$folder/python" -c 'import torch, pydantic, m4v.core.errors; print("torch", torch.__version__, "GPUs", torch.cuda.device_count())'
