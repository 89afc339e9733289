#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Lint, formats and types, of Python and of C++.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source examples/setup_env.sh
setup_env "$root" with_tests
export PATH=$root/.venv/bin:$PATH

ruff check .
ruff format --check .
mypy
find csrc tests/csrc tests/fake_cuda -name "*.cc" -o -name "*.h" | xargs clang-format --dry-run -Werror
