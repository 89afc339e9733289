# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A worker extension that tells which data-parallel fields vLLM's workers and connectors see."""

FIELDS = ("index", "rank", "rank_local", "size", "size_local", "external_lb", "hybrid_lb")
EXTENSION = "rank_fields.RankFields"


class RankFields:
    """vLLM mixes this class into the worker, with `--worker-extension-cls`."""

    def rank_fields(self) -> dict:
        parallel = self.vllm_config.parallel_config
        return {name: getattr(parallel, f"data_parallel_{name}") for name in FIELDS}
