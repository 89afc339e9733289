#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Sets up what is missing and runs the tests: C++ under sanitizers, then lint, then pytest.
#
#     bash tests/run.sh [--all] [PYTEST OPTIONS]
#
# Without --all it leaves out tests that are marked `whole`: most of those that start engines.
set -euo pipefail
selection=(-m "not slow and not whole")
if [ "${1:-}" = --all ]; then
  selection=(-m "not slow")
  shift
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source examples/setup_env.sh
warnings_are_errors=CMAKE_COMPILE_WARNING_AS_ERROR=ON
export SKBUILD_CMAKE_DEFINE=$warnings_are_errors
setup_env "$root" with_tests
export PATH=$root/.venv/bin:$PATH HF_HUB_OFFLINE=1

if [ ! -f /usr/include/gtest/gtest.h ]; then
  apt-get update -q >/dev/null && apt-get install -y -q libgtest-dev >/dev/null
fi
if [ -z "$(command -v prometheus)" ]; then
  apt-get install -y -q --no-install-recommends prometheus >/dev/null 2>&1 \
    || echo "expected Debian's prometheus, for one test of metrics; it is skipped." >&2
fi
cmake -S csrc -B build/csrc-tests -DDWDP_BUILD_TESTS=ON -D$warnings_are_errors -DPython_EXECUTABLE="$root/.venv/bin/python" \
  >/dev/null
cmake --build build/csrc-tests -j2 -- --no-print-directory >/dev/null
ctest --test-dir build/csrc-tests --output-on-failure

bash tests/lint.sh
python tests/contract/formats/kernel_source.py || echo "expected triton_kernels, for some formats of gpt-oss; their cases are not run." >&2
pytest --numprocesses 2 --dist loadfile "${selection[@]}" "$@"
