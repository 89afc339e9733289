#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Sets up .venv with NIXL and vLLM's router, and runs serve.py with the given options.
set -euo pipefail
unset CDPATH  # with it, 'cd' prints where it went
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
source examples/setup_env.sh
setup_env "$root" with_router
exec "$root/.venv/bin/python" -I -X utf8 examples/disaggregated/serve.py "$@"
