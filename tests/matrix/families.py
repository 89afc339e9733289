# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The model families of the matrix."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import family_sizes


@dataclass(frozen=True)
class Family:
    """A kind of model. sizes: its fields of the configuration, for a number of experts.

    options: of vllm.LLM, for stock vLLM and for ranks. renamed: a part of the names of tensors, and
    what takes its place in the checkpoint. predicts: whether the checkpoint has a layer more, which
    predicts the token after the next (multi-token prediction), and drafts by it.
    """

    model_type: str
    sizes: Callable[[int], dict[str, Any]]
    options: dict[str, Any] = field(default_factory=dict)
    renamed: tuple[str, str] = ("", "")
    predicts: bool = False

    def config(self, num_experts: int) -> dict[str, Any]:
        return family_sizes.COMMON | self.sizes(num_experts)


MTP = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}

FAMILIES = {
    "granitemoe": Family("granitemoe", family_sizes.local_experts),
    "olmoe": Family("olmoe", family_sizes.olmoe),
    "mixtral": Family("mixtral", family_sizes.local_experts),
    "qwen2_moe": Family("qwen2_moe", family_sizes.shared_expert),
    "qwen3_moe": Family("qwen3_moe", family_sizes.qwen3_moe),
    "qwen3_next": Family("qwen3_next", family_sizes.qwen3_next),
    "deepseek_v2": Family("deepseek_v2", family_sizes.deepseek_v2),
    "deepseek_v3": Family("deepseek_v3", family_sizes.deepseek_v3),
    "deepseek_v3-mtp": Family("deepseek_v3", family_sizes.deepseek_v3, MTP, predicts=True),
    "glm4_moe": Family("glm4_moe", family_sizes.glm4_moe),
    "glm4_moe-mtp": Family("glm4_moe", family_sizes.glm4_moe, MTP, predicts=True),
    "ernie4_5_moe": Family("ernie4_5_moe", family_sizes.ernie4_5_moe),
    "gpt_oss": Family("gpt_oss", family_sizes.local_experts),
    "llama4_text": Family("llama4_text", family_sizes.llama4),
    "dbrx": Family("dbrx", family_sizes.dbrx),
    "dbrx-renamed": Family(
        "dbrx", family_sizes.dbrx, renamed=("ffn.experts.", "ffn.experts.routed_experts.")
    ),
    "phimoe": Family(
        "phimoe", family_sizes.phimoe, {"hf_overrides": {"architectures": ["PhiMoEForCausalLM"]}}
    ),
    "minimax_m2": Family("minimax_m2", family_sizes.minimax_m2),
    "qwen3_moe-transformers": Family(
        "qwen3_moe", family_sizes.qwen3_moe, {"model_impl": "transformers"}
    ),
}
"""By the name that --model-type takes.

dbrx: vLLM 0.32 doesn't load its published checkpoints: it looks for experts where they were before
it put them into a module named routed_experts. It loads tensors that have this name.

phimoe: vLLM knows the name in published checkpoints, not the one of Transformers' class.
The last one runs Transformers' own model in vLLM.
"""
