# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The numbers of a Mixture-of-Experts model by which its cost is computed: pure arithmetic."""

from dataclasses import dataclass

from vllm_dwdp.planning.formats import WeightFormat


@dataclass(frozen=True)
class Attention:
    """One layer of attention, grouped-query or latent (MLA).

    in_params, out_params: parameters of the projections before the scores and after them.
    head_dims: dimensions of a head's keys and of its values, added.
    kv_values: numbers that the KV cache holds for one token in one layer.
    window: tokens that a layer with sliding window looks back on; None: there is no such layer.
    window_layers: how many layers have the window.
    """

    in_params: int
    out_params: int
    num_heads: int
    head_dims: int
    kv_values: int
    window: int | None = None
    window_layers: int = 0

    @property
    def params(self) -> int:
        return self.in_params + self.out_params


@dataclass(frozen=True)
class Formats:
    """Formats of weights by place. mlp: of shared experts and of dense layers.

    kv_bytes: bytes of one number in the KV cache.
    """

    experts: WeightFormat
    attention_in: WeightFormat
    attention_out: WeightFormat
    mlp: WeightFormat
    kv_bytes: int = 2


@dataclass(frozen=True)
class MoeModel:
    """A model. Counts of parameters are those of one layer; shared_params: of all shared experts.

    vocab_params: embedding and output head, which all formats keep in BF16.
    """

    name: str
    num_layers: int
    num_moe_layers: int
    hidden: int
    num_experts: int
    top_k: int
    expert_params: int
    shared_params: int
    dense_params: int
    vocab_params: int
    attention: Attention
    formats: Formats

    @property
    def num_dense_layers(self) -> int:
        return self.num_layers - self.num_moe_layers

    @property
    def expert_bytes(self) -> float:
        """Bytes of one expert of one layer."""
        return self.expert_params * self.formats.experts.bytes_per_param

    @property
    def attention_bytes(self) -> float:
        """Bytes of the projections of one layer."""
        formats, attention = self.formats, self.attention
        return (
            attention.in_params * formats.attention_in.bytes_per_param
            + attention.out_params * formats.attention_out.bytes_per_param
        )

    @property
    def rest_bytes(self) -> float:
        """Bytes of all weights but the routed experts, which every rank holds."""
        mlp = self.num_moe_layers * self.shared_params + self.num_dense_layers * self.dense_params
        router = self.num_moe_layers * self.hidden * self.num_experts
        return (
            self.num_layers * self.attention_bytes
            + mlp * self.formats.mlp.bytes_per_param
            + 2 * (router + self.vocab_params)
        )

    @property
    def kv_bytes_per_token(self) -> int:
        return self.num_layers * self.attention.kv_values * self.formats.kv_bytes
