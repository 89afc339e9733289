#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# The main job on a fresh machine: set up, serve the demo model with two DWDP ranks, ask it.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source examples/setup_env.sh
setup_env "$root"
export PATH=$root/.venv/bin:$PATH HF_HUB_OFFLINE=1
exec python examples/quickstart.py
