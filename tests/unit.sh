#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# The tests of arithmetic, of rules and of the documentation: no model, no vLLM.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source examples/setup_env.sh
setup_env "$root" with_tests
"$root/.venv/bin/pytest" tests/unit tests/docs "$@"
