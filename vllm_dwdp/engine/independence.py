# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Engines without lock-step: no waves, no dummy batches, no collective over ranks.

vLLM runs data-parallel engines in lock-step when the model is MoE. Two ways around it:

* Several engines under one front-end (internal, hybrid load balancing): the front-end's model
  config says `is_moe == False` until the executor starts, so that each engine reconfigures
  itself as an independent rank.
* One engine per front-end (external load balancing, `VLLM_DP_*`): data parallelism is collapsed
  before vLLM looks at it; the engine is a job of one.
"""

from typing import Any

from vllm.config import ModelConfig


class IndependentModelConfig(ModelConfig):
    """A ModelConfig whose engines vLLM leaves independent. Pickles by reference."""

    @property
    def is_moe(self) -> bool:
        return False


def hide_moe(vllm_config: Any) -> None:
    vllm_config.model_config.__class__ = IndependentModelConfig


def show_moe(vllm_config: Any) -> None:
    """Undo `hide_moe`, in the engine process, before the model is built."""
    if isinstance(vllm_config.model_config, IndependentModelConfig):
        vllm_config.model_config.__class__ = ModelConfig
    vllm_config.parallel_config.is_moe_model = vllm_config.model_config.is_moe


def collapse_data_parallel(parallel_config: Any) -> None:
    """Make this front-end a job of one engine; its place in the dwdp job is kept in Settings."""
    parallel_config.reconfigure_for_independent_dp_rank()
    parallel_config.data_parallel_external_lb = False
    parallel_config.data_parallel_rank_local = None
    parallel_config.data_parallel_index = 0
