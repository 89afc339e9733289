# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What the configuration of each model family has beyond sizes that all have.

Each function takes a number of experts and returns fields of the configuration.
"""

from typing import Any

HIDDEN, INTERMEDIATE, HEADS, HEAD_DIM = 160, 96, 5, 32
"""A row of the second expert tensor is 7.5 pages long, so ranks share boundary pages."""

TOP_K = 2
COMMON = {
    "vocab_size": 4096,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 512,
    "num_experts_per_tok": TOP_K,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
DENSE = {"intermediate_size": 2 * INTERMEDIATE}
"""The size of dense layers, for families whose experts have a size of their own."""

LATENT = {
    **DENSE,
    "num_key_value_heads": HEADS,
    "moe_intermediate_size": INTERMEDIATE,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "head_dim": 64,
    "v_head_dim": 128,
}
"""DeepSeek's sizes, with a dense layer before the MoE layer.

vLLM's attention for CPUs has the sizes of heads that published checkpoints have, and no others.
"""


def _groups(num_experts: int) -> dict[str, int]:
    """Two groups of experts, of which a token takes one, if the number can be halved."""
    return {"n_group": 1 if num_experts % 2 else 2, "topk_group": 1}


def qwen3_moe(num_experts: int) -> dict[str, Any]:
    return DENSE | {"num_experts": num_experts, "moe_intermediate_size": INTERMEDIATE}


def olmoe(num_experts: int) -> dict[str, Any]:
    return {"num_experts": num_experts, "intermediate_size": INTERMEDIATE}


def local_experts(num_experts: int) -> dict[str, Any]:
    return {"num_local_experts": num_experts, "intermediate_size": INTERMEDIATE}


def shared_expert(num_experts: int) -> dict[str, Any]:
    return qwen3_moe(num_experts) | {"shared_expert_intermediate_size": INTERMEDIATE}


def qwen3_next(num_experts: int) -> dict[str, Any]:
    # vLLM's kernel for linear attention on CPUs has no heads smaller than published ones.
    return shared_expert(num_experts) | {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
    }


def deepseek_v2(num_experts: int) -> dict[str, Any]:
    return LATENT | {"n_routed_experts": num_experts, "n_group": 1, "topk_group": 1}


def deepseek_v3(num_experts: int) -> dict[str, Any]:
    # Transformers doesn't read how the router chooses. vLLM does, as published checkpoints say it.
    router = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    return LATENT | router | {"n_routed_experts": num_experts, **_groups(num_experts)}


def glm4_moe(num_experts: int) -> dict[str, Any]:
    return DENSE | {
        "n_routed_experts": num_experts,
        "moe_intermediate_size": INTERMEDIATE,
        "first_k_dense_replace": 1,
    }


def ernie4_5_moe(num_experts: int) -> dict[str, Any]:
    return DENSE | {
        "moe_num_experts": num_experts,
        "moe_intermediate_size": INTERMEDIATE,
        "moe_k": TOP_K,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
    }


def llama4(num_experts: int) -> dict[str, Any]:
    # vLLM scales the input of Llama 4's experts, which it can do for one expert per token only.
    return local_experts(num_experts) | {
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 2 * INTERMEDIATE,
        "interleave_moe_layer_step": 1,
    }


def phimoe(num_experts: int) -> dict[str, Any]:
    # vLLM's model always has these biases, as published checkpoints do.
    return local_experts(num_experts) | {"attention_bias": True, "lm_head_bias": True}


def minimax_m2(num_experts: int) -> dict[str, Any]:
    # Published checkpoints have these fields, but vLLM's router for CPUs can't do their "sigmoid".
    router = {"scoring_func": "softmax", "use_routing_bias": True}
    return local_experts(num_experts) | router | {"rotary_dim": HEAD_DIM // 2}


def dbrx(num_experts: int) -> dict[str, Any]:
    # vLLM looks for the number of experts beside ffn_config. Published checkpoints have it inside,
    # so vLLM takes them for dense models, for which it refuses data parallelism.
    experts = {"moe_num_experts": num_experts, "moe_top_k": TOP_K, "ffn_hidden_size": INTERMEDIATE}
    return {
        "d_model": HIDDEN,
        "n_heads": HEADS,
        "n_layers": 2,
        "max_seq_len": 512,
        "moe_num_experts": num_experts,
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {**experts, "hidden_size": HIDDEN},
    }
