#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Removes each guard of fetching and of sharing in turn: at least one test must fail for each.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/examples/setup_env.sh"
setup_env "$root" with_tests
"$root/.venv/bin/python" "$root/tests/mutants/run.py"
