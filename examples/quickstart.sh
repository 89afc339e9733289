#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# The main job on a fresh machine: set up, serve the demo model with two DWDP ranks, ask it.
set -euo pipefail
unset CDPATH  # with it, 'cd' prints where it went
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source examples/setup_env.sh
setup_env "$root"
# -I: without the PYTHON* variables; the script leaves out the rest of what the shell exports.
exec "$root/.venv/bin/python" -I -X utf8 examples/quickstart.py
