# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Speculative decoding: each rank drafts for itself, with a draft model that is whole on each.

Layers with experts are shared only where they are the model's own: a draft runs them in steps of
other sizes, several times for one step of the model.
"""

from collections.abc import Iterable
from typing import Any

import torch

from vllm_dwdp.config import ConfigError

WITHOUT_MODEL = ("ngram", "ngram_gpu", "suffix", "extract_hidden_states", "custom_class")
"""Methods that have no draft model; vLLM notes the target's config for some of them."""

DENSE_DRAFTS = (
    *("MiMoV2MTPModel", "MiMoV2OmniMTPModel", "ErnieMTPModel", "LongCatFlashMTPModel"),
    *("EagleLlama4ForCausalLM", "Eagle3LlamaForCausalLM", "LlamaForCausalLMEagle3"),
    *("Eagle3MiniMaxM2ForCausalLM", "Eagle3Qwen3ForCausalLM"),
    *("Eagle3DeepseekV2ForCausalLM", "Eagle3DeepseekV3ForCausalLM"),
)
"""Architectures of drafts without experts, whose configs may name those of the target."""


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
    """Raise ConfigError if MoE layers were built outside of the model, for drafts."""
    own = set(model.modules())
    for layer in layers:
        if layer not in own:
            raise ConfigError(
                f"dwdp doesn't support draft models with MoE layers, one was built as "
                f"'{layer.layer_name}'; drop --speculative-config."
            )
