#!/usr/bin/env bash
# Everything that an installation needs in one folder, for machines without a network.
#   wheelhouse.sh constraints OUT             join constraints.txt and images/gpu.txt
#   wheelhouse.sh download FOLDER [--gpu]     fetch the pinned closure, with a list of SHA-256; goes on where it stopped
#   wheelhouse.sh verify FOLDER               every file is there, none has changed, none is extra
#   wheelhouse.sh install FOLDER [VENV]       verify, then install from the folder alone
# PIP_ARGS goes to pip download (`--platform …`, `--extra-index-url …`); PYTHON names the interpreter.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}
LIST=SHA256SUMS

fail() { echo "wheelhouse: $1. Next: $2" >&2; exit "${3:-10}"; }

# Lines of images/gpu.txt win over those of the same name; `-name` leaves one out.
constraints() {
  awk '
    function name(line) { sub(/[ =<>!~;\[@].*/, "", line); gsub(/[-_.]+/, "-", line); return tolower(line) }
    /^[ \t]*(#|$)/ { next }
    FNR == NR { if ($0 ~ /^-/) { out[name(substr($0, 2))] = 1 } else { out[name($0)] = 1; print } next }
    !(name($0) in out)
  ' "$here/images/gpu.txt" "$here/../constraints.txt" | LC_ALL=C sort -f
}

roots() { # what to install, one requirement a line
  "$PYTHON" - "$here/../pyproject.toml" "${1:-}" <<'PY'
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extra = project["optional-dependencies"]["gpu"] if sys.argv[2] == "--gpu" else []
for line in [*project["dependencies"], *extra, "setuptools", "wheel", "pip"]:
    print(line.replace(" ", ""))
PY
}

download() {
  local folder=$1 gpu=${2:-}
  mkdir -p "$folder"
  if [ "$gpu" = --gpu ]; then
    constraints > "$folder/constraints.txt"
  else
    grep -v '^ *#' "$here/../constraints.txt" > "$folder/constraints.txt"
  fi
  roots "$gpu" > "$folder/roots.txt"
  local no_binary=()
  # These two are built for the image's own architectures: their sources are fetched, which asks their set-up files for
  # names and so for the torch that PYTHON has, but for no compiler.
  if [ "$gpu" = --gpu ]; then
    no_binary=(--no-binary "mamba-ssm,causal-conv1d" --no-build-isolation)
    "$PYTHON" -c "import torch" 2>/dev/null || fail "$PYTHON has no torch" "PYTHON=.venv/bin/python infra/wheelhouse.sh …"
    export MAMBA_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE
  fi
  # shellcheck disable=SC2086
  "$PYTHON" -m pip --disable-pip-version-check download --quiet --dest "$folder" \
    -c "$folder/constraints.txt" -r "$folder/roots.txt" "${no_binary[@]}" ${PIP_ARGS:-}
  seal "$folder"
}

seal() {
  (cd "$1" && find . -type f ! -name "$LIST" ! -name "$LIST.tmp" -printf '%P\0' | LC_ALL=C sort -z \
    | xargs -0 sha256sum > "$LIST.tmp" && mv "$LIST.tmp" "$LIST")
  echo "$(wc -l < "$1/$LIST") files in $1"
}

verify() {
  local folder=$1 extra
  [ -f "$folder/$LIST" ] || fail "$folder has no $LIST" "wheelhouse.sh download $folder" 20
  (cd "$folder" && sha256sum --check --quiet --strict "$LIST") || fail "$folder has changed" "copy it again" 20
  extra=$(cd "$folder" && comm -13 <(cut -c67- "$LIST" | LC_ALL=C sort) \
    <(find . -type f ! -name "$LIST" -printf '%P\n' | LC_ALL=C sort))
  [ -z "$extra" ] || fail "not in the list: ${extra%%$'\n'*}" "remove it, or download again" 20
  echo "verified $(wc -l < "$folder/$LIST") files"
}

install() {
  local folder=$1 venv=${2:-.venv}
  verify "$folder"
  [ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-index --find-links "$folder" \
    -c "$folder/constraints.txt" -r "$folder/roots.txt"
  echo "installed into $venv"
}

[ $# -ge 2 ] || fail "a verb and its folder are needed" "head -8 infra/wheelhouse.sh" 2
verb=$1; shift
case "$verb" in
  constraints) constraints > "$1" ;;
  download) download "$@" ;;
  seal) seal "$1" ;;
  verify) verify "$1" ;;
  install) install "$@" ;;
  *) fail "unknown verb $verb" "head -8 infra/wheelhouse.sh" 2 ;;
esac
