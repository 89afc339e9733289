#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Runs the Python tests under coverage, in their own processes and those of engines, and prints a
# report. Which test ran a line in pytest's own process: coverage html --show-contexts. A process
# that is killed tells nothing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
source examples/setup_env.sh
setup_env "$root" with_tests
export PATH=$root/.venv/bin:$PATH HF_HUB_OFFLINE=1 COVERAGE_FILE=$root/build/coverage/data

mkdir -p build/coverage
coverage erase
failed=0
coverage run -m pytest --numprocesses 2 --dist loadfile "$@" || failed=$?
coverage combine --quiet
coverage report
exit "$failed"
