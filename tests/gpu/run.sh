#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# The GPU suite: builds the core and runs its checks on the GPUs at hand. Needs python3 with PyTorch
# for CUDA, Triton and nanobind, cmake, ninja and a compiler; no network, and vLLM only for checks
# that name it.
#
#     bash tests/gpu/run.sh [RESULTS.md [CHECK ...]]
#
# With CHECKs only those run, and what they say is added to RESULTS.md. Build and checks end within
# TIME_LIMIT seconds (345).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
results=${1:-$root/build/gpu-results.md}
python=${PYTHON:-$(command -v python3)}
build=$root/build/gpu

if ! "$python" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
  echo "skipped: no GPU, or no PyTorch for CUDA, for $python"
  exit 0
fi
mkdir -p "$build"
if ! { cmake -S "$root/csrc" -B "$build" -G Ninja -DPython_EXECUTABLE="$python" \
    && cmake --build "$build"; } >"$build/log" 2>&1; then
  tail -n 50 "$build/log"
  echo "error: the core was not built"
  exit 1
fi
cp "$build"/_core*.so "$root/vllm_dwdp/"
echo "built in $SECONDS s"
export PYTHONPATH=$root:$root/tests:$root/tests/gpu:$root/tests/gpu/checks
"$python" "$root/tests/gpu/suite.py" --seconds $((${TIME_LIMIT:-345} - SECONDS)) "$results" "${@:2}"
