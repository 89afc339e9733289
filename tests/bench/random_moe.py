# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A Qwen3-MoE checkpoint with random weights, big enough to measure with."""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

DEMO_MODEL = Path(__file__).resolve().parents[2] / "examples" / "demo_model"
STANDARD_DEVIATION = 0.02
BF16_BYTES = 2
FP8 = torch.float8_e4m3fn
FP8_BLOCK = 128
"""A block of this many rows and columns shares a scale."""

FP8_SPREAD = 100.0
"""Standard deviation of the quantised values; the largest value of the type is 448."""

POOL_SIZE = 1 << 25


class RandomWeights:
    """Makes weights from parts of one pool of normal values; drawing billions takes minutes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._pool = torch.randn(POOL_SIZE)
        self._pool_bf16 = (self._pool * STANDARD_DEVIATION).bfloat16()

    def bf16(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Ones for a shape of one dimension (a norm), else normal values."""
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return self._part(self._pool_bf16, shape).clone()

    def fp8(self, shape: tuple[int, ...]) -> torch.Tensor:
        return (self._part(self._pool, shape) * FP8_SPREAD).clamp(-448, 448).to(FP8)

    def fp8_scales(self, shape: tuple[int, ...]) -> torch.Tensor:
        """float32, a random scale for each block."""
        return (torch.rand(shape) + 0.5) * (STANDARD_DEVIATION / FP8_SPREAD)

    def _part(self, pool: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        size = math.prod(shape)
        start = int(torch.randint(POOL_SIZE - size, ()))
        return pool[start : start + size].view(shape)


@dataclass(frozen=True)
class RandomMoe:
    """The sizes of the model. It has the tokenizer of the demo model.

    block_fp8: quantise experts to FP8 in blocks, as in checkpoints of DeepSeek and Qwen3-FP8.
    """

    num_layers: int = 8
    num_experts: int = 64
    top_k: int = 4
    hidden_size: int = 512
    expert_size: int = 512
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    block_fp8: bool = False

    @property
    def num_expert_params(self) -> int:
        return self.num_layers * self.num_experts * 3 * self.hidden_size * self.expert_size

    @property
    def expert_bytes(self) -> int:
        return self.num_expert_params * (1 if self.block_fp8 else BF16_BYTES)

    def write(self, folder: Path) -> Path:
        """Write the checkpoint, one file per layer, and return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(DEMO_MODEL / name, folder)
        config = json.loads((DEMO_MODEL / "config.json").read_text()) | self._sizes()
        if self.block_fp8:
            config["quantization_config"] = self._quantization()
        (folder / "config.json").write_text(json.dumps(config))
        weights = RandomWeights()
        shapes = {"model-rest": dict(self._rest(config["vocab_size"]))}
        shapes |= {f"model-layer-{i}": dict(self._layer(i)) for i in range(self.num_layers)}
        for file, tensors in shapes.items():
            values = {name: self._value(weights, name, shape) for name, shape in tensors.items()}
            save_file(values, folder / f"{file}.safetensors")
        return folder

    def _sizes(self) -> dict[str, int]:
        return {
            "num_hidden_layers": self.num_layers,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.top_k,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.expert_size,
            "moe_intermediate_size": self.expert_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
        }

    def _quantization(self) -> dict[str, object]:
        parts = "mlp.gate", *(f"self_attn.{name}_proj" for name in "qkvo")
        layers = range(self.num_layers)
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
            "modules_to_not_convert": [f"model.layers.{i}.{p}" for i in layers for p in parts],
        }

    def _rest(self, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (vocab_size, self.hidden_size)
        yield "model.norm.weight", (self.hidden_size,)

    def _layer(self, layer_idx: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix = f"model.layers.{layer_idx}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", (self.hidden_size,)
        for name, heads in (("q", self.num_heads), ("k", self.num_kv_heads), ("v", 0)):
            rows = (heads or self.num_kv_heads) * self.head_dim
            yield f"{prefix}.self_attn.{name}_proj.weight", (rows, self.hidden_size)
        yield (
            f"{prefix}.self_attn.o_proj.weight",
            (self.hidden_size, self.num_heads * self.head_dim),
        )
        for name in ("q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{name}.weight", (self.head_dim,)
        yield f"{prefix}.mlp.gate.weight", (self.num_experts, self.hidden_size)
        for expert in range(self.num_experts):
            for name in ("gate_proj", "up_proj", "down_proj"):
                shape = (self.expert_size, self.hidden_size)
                shape = shape[::-1] if name == "down_proj" else shape
                yield f"{prefix}.mlp.experts.{expert}.{name}.weight", shape
                if self.block_fp8:
                    scales = (shape[0] // FP8_BLOCK, shape[1] // FP8_BLOCK)
                    yield f"{prefix}.mlp.experts.{expert}.{name}.weight_scale_inv", scales

    def _value(self, weights: RandomWeights, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("weight_scale_inv"):
            return weights.fp8_scales(shape)
        if self.block_fp8 and ".experts." in name:
            return weights.fp8(shape)
        return weights.bf16(shape)
