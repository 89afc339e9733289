#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Builds the documentation site. Takes .venv if that has the extra `docs`, else an environment of
# its own in build/docs-env, which needs neither vLLM nor a compiler.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
source examples/setup_env.sh

python=$root/.venv/bin/python
if ! "$python" -c "import zensical" 2>/dev/null; then
  python=$root/build/docs-env/bin/python
  [ -x "$python" ] || python3.11 -m venv build/docs-env
  if ! "$python" -c "import zensical" 2>/dev/null; then
    requirements "$root" docs | install_listed "$python"
  fi
fi
exec "$python" docs/site/build_site.py "$@"
