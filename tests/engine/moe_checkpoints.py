# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Small MoE checkpoints with random weights, which store their experts in different ways."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

DEMO_MODEL = Path(__file__).resolve().parents[2] / "examples" / "demo_model"
NUM_EXPERTS = 7
"""No test's number of ranks divides this."""
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "num_experts_per_tok": 2,
    "dtype": "bfloat16",
}
FULL_ATTENTION = ["full_attention", "full_attention"]
FAMILIES = {
    "qwen3_moe": {"num_experts": NUM_EXPERTS, "moe_intermediate_size": 48},
    "llama4_text": {
        "num_local_experts": NUM_EXPERTS,
        "num_experts_per_tok": 1,
        "intermediate_size": 48,
        "intermediate_size_mlp": 96,
        "interleave_moe_layer_step": 1,
    },
    "granitemoe": {"num_local_experts": NUM_EXPERTS, "intermediate_size": 48},
    "granitemoehybrid": {
        "num_local_experts": NUM_EXPERTS,
        "intermediate_size": 48,
        "shared_intermediate_size": 96,
        "layer_types": ["attention", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
    },
    "gemma4_text": {
        "num_experts": NUM_EXPERTS,
        "top_k_experts": 2,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "enable_moe_block": True,
        "layer_types": FULL_ATTENTION,
        "global_head_dim": 32,
        "vocab_size_per_layer_input": 64,
        "hidden_size_per_layer_input": 16,
    },
    "deepseek_v2": {
        "n_routed_experts": NUM_EXPERTS,
        "moe_intermediate_size": 48,
        "intermediate_size": 96,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": None,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "n_group": 1,
        "topk_group": 1,
    },
    "gpt_oss": {
        "num_local_experts": NUM_EXPERTS,
        "intermediate_size": 64,
        "layer_types": FULL_ATTENTION,
    },
}


GROUP, IN_INT32 = 128, 8
"""Numbers that share a scale, and numbers of four bits in one integer, in packed checkpoints."""
PACKED = {
    "awq": {"zero_point": True, "modules_to_not_convert": ["self_attn", "lm_head", "mlp.gate"]},
    "gptq": {"desc_act": False, "sym": True, "dynamic": {"-:.*(self_attn|lm_head|mlp.gate$)": {}}},
}
"""What their configurations say of a method; only experts are packed."""


def write_family(folder: Path, family: str, *, is_fused: bool, **sizes: int) -> Path:
    """Write a checkpoint with Transformers; returns its folder.

    is_fused: write tensors as Transformers holds them in memory. By default it writes the tensors
    that the family's first checkpoints had, for most families one per expert. sizes: fields of the
    model's configuration, in the place of SIZES.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **sizes})
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.05)
    model.save_pretrained(folder, save_original_format=not is_fused)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL / name, folder)
    return folder


def write_fused_demo(folder: Path) -> Path:
    """Write the demo model with all experts of a layer in two tensors; returns the folder."""
    return change(shutil.copytree(DEMO_MODEL, folder), fuse)


def fuse(tensors: dict[str, torch.Tensor]) -> None:
    """Join the experts of each layer of a Qwen3-MoE checkpoint into two tensors."""
    for prefix in sorted({name.partition(".experts.")[0] for name in tensors if "expert" in name}):
        experts = []
        while f"{prefix}.experts.{len(experts)}.up_proj.weight" in tensors:
            names = (
                f"{prefix}.experts.{len(experts)}.{n}_proj.weight" for n in ("gate", "up", "down")
            )
            experts.append([tensors.pop(name) for name in names])
        gate_up = torch.stack([torch.cat([gate, up]) for gate, up, _ in experts])
        tensors[f"{prefix}.experts.gate_up_proj"] = gate_up
        tensors[f"{prefix}.experts.down_proj"] = torch.stack([down for *_, down in experts])


def write_packed(folder: Path, method: str, **sizes: int) -> Path:
    """Write a Qwen3-MoE checkpoint whose experts are random numbers of four bits.

    method: "awq" or "gptq". sizes: as in write_family.
    """

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            num_outputs, num_inputs = tensors.pop(name).shape
            made = _packed(method, num_outputs, num_inputs)
            tensors.update({name.replace("weight", kind): tensor for kind, tensor in made.items()})

    write_family(folder, "qwen3_moe", is_fused=False, **sizes)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": GROUP}
    config["quantization_config"] |= PACKED[method]
    (folder / "config.json").write_text(json.dumps(config))
    return change(folder, pack)


def _packed(method: str, num_outputs: int, num_inputs: int) -> dict[str, torch.Tensor]:
    """The tensors of one matrix, by the ends of their names in a checkpoint."""
    in_outputs = (num_inputs, num_outputs // IN_INT32)
    in_inputs = (num_inputs // IN_INT32, num_outputs)
    num_groups = num_inputs // GROUP
    integers = {
        "qweight": in_outputs if method == "awq" else in_inputs,
        "qzeros": (num_groups, num_outputs // IN_INT32),
    }
    made = {kind: torch.randint(1 << 30, shape).int() for kind, shape in integers.items()}
    if method == "gptq":
        made["g_idx"] = torch.arange(num_inputs, dtype=torch.int32) // GROUP
    return made | {"scales": torch.rand(num_groups, num_outputs).bfloat16()}


def change(folder: Path, changed: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Let `changed` change the tensors of each file of a checkpoint in place; returns `folder`."""
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        changed(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return folder


ERNIE_VL = {
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "model_type": "ernie4_5_vl_moe",
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "freq_allocation": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "moe_num_experts": [NUM_EXPERTS, NUM_EXPERTS],
    "moe_intermediate_size": [48, 32],
    "moe_layer_start_index": [1, 1],
    "moe_layer_end_index": [1, 1],
    "moe_num_shared_experts": 2,
    "moe_k": 2,
    "im_patch_id": 5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}


def write_ernie_vl(folder: Path) -> Path:
    """Write the language model of an ERNIE-4.5-VL checkpoint; returns the folder.

    A layer has experts for text, numbered from 0, and after them experts for pictures. vLLM loads
    the experts for pictures into a MoE layer of their own.
    """
    folder.mkdir()
    of_text = {"moe_num_experts": NUM_EXPERTS, "model_type": "ernie4_5_vl_moe_text"}
    config = ERNIE_VL | {"text_config": ERNIE_VL | of_text}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) / 20 for name, shape in _ernie_vl_shapes().items()}
    save_file({name: t.bfloat16() for name, t in tensors.items()}, folder / "model.safetensors")
    return folder


def _ernie_vl_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {"model.embed_tokens.weight": (4096, 64), "model.norm.weight": (64,)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (64,)
        for name, rows in (("q", 128), ("k", 64), ("v", 64)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, 64)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (64, 128)
    sizes = {"model.layers.0.mlp": 96, "model.layers.1.mlp.shared_experts": 96}
    for expert in range(2 * NUM_EXPERTS):
        sizes[f"model.layers.1.mlp.experts.{expert}"] = 48 if expert < NUM_EXPERTS else 32
    for prefix, size in sizes.items():
        for name in ("gate", "up"):
            shapes[f"{prefix}.{name}_proj.weight"] = (size, 64)
        shapes[f"{prefix}.down_proj.weight"] = (64, size)
    for gate in ("gate.weight", "gate.weight_1"):
        shapes[f"model.layers.1.mlp.{gate}"] = (64, NUM_EXPERTS)
    shapes["model.layers.1.mlp.moe_statics.e_score_correction_bias"] = (2, NUM_EXPERTS)
    return shapes
