#!/usr/bin/env bash
# Make the virtual environment and install the pinned closure. On a machine without a GPU a CPU build of
# torch saves gigabytes: give pip a place that has one (TORCH_ARGS="--index-url …" or --find-links), it is
# installed first and satisfies the rest.
set -euo pipefail
PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}
command -v "$PYTHON" >/dev/null || { echo "install: $PYTHON is not on PATH. Next: make install PYTHON=/path/to/python3.11" >&2; exit 10; }
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install -c constraints.txt pip setuptools wheel
# shellcheck disable=SC2086
pip install -c constraints.txt ${TORCH_ARGS:-} torch
pip install -c constraints.txt -e '.[dev]'
echo "installed into $VENV"
