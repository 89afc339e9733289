#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# The GPU suite: builds the core and runs every check on the GPUs at hand. Needs python3 with
# PyTorch for CUDA, Triton and nanobind, cmake and a compiler; no vLLM, no network.
#
#     bash tests/gpu/run.sh [RESULTS.md]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
results=${1:-$root/build/gpu-results.md}
python=${PYTHON:-$(command -v python3)}

if ! "$python" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
  echo "skipped: no GPU, or no PyTorch for CUDA, for $python"
  exit 0
fi
cmake -S "$root/csrc" -B "$root/build/gpu" -DPython_EXECUTABLE="$python" >/dev/null
cmake --build "$root/build/gpu" -j"$(nproc)" >/dev/null
cp "$root"/build/gpu/_core*.so "$root/vllm_dwdp/"
export PYTHONPATH=$root:$root/tests:$root/tests/gpu:$root/tests/cuda
"$python" "$root/tests/gpu/suite.py" "$results"
