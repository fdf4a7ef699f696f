#!/usr/bin/env bash
# nvcc for the architectures of TORCH_CUDA_ARCH_LIST and no other: the set-up files of mamba-ssm and causal-conv1d
# name nine of their own, whatever the list says, and take an hour for them. Used as PYTORCH_NVCC. They may also empty
# TORCH_CUDA_ARCH_LIST, so that NVCC_ARCHITECTURES, where it is set, comes first.
#   TORCH_CUDA_ARCH_LIST="9.0 10.0+PTX" PYTORCH_NVCC=infra/images/nvcc-architectures.sh pip wheel …
set -euo pipefail
list=${NVCC_ARCHITECTURES:-${TORCH_CUDA_ARCH_LIST:-}}
: "${list:?nvcc-architectures: set TORCH_CUDA_ARCH_LIST, e.g. 9.0 for H100 and H200}"
nvcc=${NVCC:-${CUDA_HOME:-/usr/local/cuda}/bin/nvcc}

kept=()
while [ $# -gt 0 ]; do
  case "$1" in
    -gencode | --generate-code) shift 2 || { echo "nvcc-architectures: $1 has no value" >&2; exit 2; } ;;
    -gencode=* | --generate-code=*) shift ;;
    *) kept+=("$1"); shift ;;
  esac
done

codes=()
for name in ${list//[;,]/ }; do
  number=${name%+PTX}
  if ! [[ $number =~ ^[0-9]+\.[0-9][af]?$ ]]; then
    echo "nvcc-architectures: '$name' in the list is no architecture such as 9.0 or 10.0+PTX" >&2
    exit 10
  fi
  number=${number/./}
  codes+=(-gencode "arch=compute_${number},code=sm_${number}")
  [ "$name" = "${name%+PTX}" ] || codes+=(-gencode "arch=compute_${number},code=compute_${number}")
done
exec "$nvcc" "${codes[@]}" "${kept[@]}"
