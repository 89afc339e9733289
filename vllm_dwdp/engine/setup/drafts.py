# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Refuses draft models with experts. In speculative decoding every rank has the whole draft model.

Ranks share only the MoE layers of the model itself. A draft model would run its MoE layers several
times for one step of the model, in steps of other sizes.
"""

from collections.abc import Iterable
from typing import Any

import torch

from vllm_dwdp.config import ConfigError

WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix", "extract_hidden_states", "custom_class")
"""Methods without a draft model; for some, vLLM puts the target's config in its place."""

DENSE_DRAFTS = (
    *("MiMoV2MTPModel", "MiMoV2OmniMTPModel", "ErnieMTPModel", "LongCatFlashMTPModel"),
    *("EagleLlama4ForCausalLM", "Eagle3LlamaForCausalLM", "LlamaForCausalLMEagle3"),
    *("Eagle3MiniMaxM2ForCausalLM", "Eagle3Qwen3ForCausalLM"),
    *("Eagle3DeepseekV2ForCausalLM", "Eagle3DeepseekV3ForCausalLM"),
)
"""Draft models without experts, whose configs may give the number of the target's experts."""


def draft_refusal(speculative: Any) -> str | None:
    """Why dwdp can't run these drafts, as far as their config tells; None if it can."""
    draft = getattr(speculative, "draft_model_config", None)
    if draft is None or speculative.method in WITHOUT_MODEL:
        return None
    if draft.get_num_experts() < 1 or set(draft.architectures) & set(DENSE_DRAFTS):
        return None
    return (
        f"dwdp doesn't support draft models with MoE layers, {', '.join(draft.architectures)} has "
        f"them; drop --speculative-config (method '{speculative.method}'), or draft with "
        "'ngram' or a dense model."
    )


def check_no_drafts(model: torch.nn.Module, layers: Iterable[torch.nn.Module]) -> None:
    """Raise ConfigError if MoE layers were built that are no part of the model: a draft's."""
    own = set(model.modules())
    for layer in layers:
        if layer not in own:
            raise ConfigError(
                f"dwdp doesn't support draft models with MoE layers, one was built as "
                f"'{layer.layer_name}'; drop --speculative-config."
            )
