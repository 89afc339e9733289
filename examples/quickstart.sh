#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Sets up .venv, serves the demo model on two DWDP ranks, sends it prompts, and stops.
set -euo pipefail
unset CDPATH  # with it, 'cd' prints where it went
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source examples/setup_env.sh
setup_env "$root"
# -I: Python ignores the PYTHON* variables. The script drops the rest of what the shell exports.
exec "$root/.venv/bin/python" -I -X utf8 examples/quickstart.py
