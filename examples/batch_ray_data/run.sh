#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
# Sets up .venv with Ray Data, writes 200 prompts to build/, and runs them with batch.py on the demo
# model. Takes further options of batch.py.
set -euo pipefail
unset CDPATH  # with it, 'cd' prints where it went
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
source examples/setup_env.sh
setup_env "$root" with_ray_data
folder=build/batch_ray_data
mkdir -p "$folder"
{
  for ((id = 0; id < 199; id++)); do
    printf '{"id": %d, "prompt": "And in the year %d Emma was"}\n' "$id" "$id"
  done
  printf '{"id": 199, "prompt": ""}\n'  # vLLM refuses it, which costs only this row
} > "$folder/prompts.jsonl"
export VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
exec "$root/.venv/bin/python" -I -X utf8 examples/batch_ray_data/batch.py "$folder/prompts.jsonl" "$folder/outputs" \
  --model examples/demo_model --max-tokens 32 --batch-size 32 --llm '{"max_model_len": 512}' "$@"
