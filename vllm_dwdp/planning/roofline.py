# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Seconds of the parts of one layer on one rank: the roofline of computation.

Each part takes the longer of its arithmetic and of its memory traffic. `layer_seconds` is what
other tools build on.
"""

from dataclasses import dataclass
from typing import Protocol

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.formats import FORMATS, WeightFormat
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.rates import Rates


class Load(Protocol):
    """What one rank computes in a step: workload.Workload, or a step of a simulation."""

    @property
    def tokens(self) -> float:
        """Tokens of the step."""

    def pairs(self, window: int | None = None) -> float:
        """Pairs of a token and one before it, at most `window` tokens back, that attention needs.

        None: any number of tokens back.
        """


@dataclass(frozen=True)
class LayerSeconds:
    """Seconds of one layer's parts.

    attention: scores and weighted values, on the average layer. projections: the products before
    and after them. elementwise: norms, activations, quantising, permuting tokens. mlp: shared
    experts, or the MLP of a dense layer. experts: routed experts; 0 for a dense layer.
    """

    attention: float
    projections: float
    elementwise: float
    mlp: float
    experts: float

    @property
    def linear(self) -> float:
        """The parts other than attention and routed experts."""
        return self.projections + self.elementwise + self.mlp

    @property
    def before_experts(self) -> float:
        """The parts under which the copy of a layer's experts runs first."""
        return self.attention + self.linear

    @property
    def total(self) -> float:
        return self.before_experts + self.experts


def layer_seconds(
    model: MoeModel,
    rates: Rates,
    work: Load,
    *,
    experts_read: float | None = None,
    shards: int = 1,
    is_moe: bool = True,
) -> LayerSeconds:
    """Seconds of one layer for the tokens of `work` on one rank.

    experts_read: experts whose weights the rank reads in the step; default: all that at least one
    token is likely to choose. shards: ranks over which tensor parallelism splits each product.
    """
    width = model.shared_params if is_moe else model.dense_params
    return LayerSeconds(
        attention=attention_seconds(model, rates, work) / shards,
        projections=_projections(model, rates, work.tokens, shards),
        elementwise=_elementwise(model, rates, work.tokens, is_moe),
        mlp=_dense(rates, work.tokens, width / shards, model.formats.mlp),
        experts=expert_seconds(model, rates, work.tokens, experts_read, shards) if is_moe else 0.0,
    )


def attention_seconds(model: MoeModel, rates: Rates, work: Load) -> float:
    """Scores and weighted values, quadratic in the length of prompts; the mean of all layers."""
    attention = model.attention
    near = attention.window_layers * work.pairs(attention.window)
    far = (model.num_layers - attention.window_layers) * work.pairs()
    flop = 2 * (near + far) / model.num_layers * attention.num_heads * attention.head_dims
    return rates.attention_s(flop)


def expert_seconds(
    model: MoeModel,
    rates: Rates,
    tokens: float,
    experts_read: float | None = None,
    shards: int = 1,
) -> float:
    """The grouped product of all routed experts that the rank computes for `tokens` tokens."""
    chosen = share_chosen(tokens, model.top_k, model.num_experts) * model.num_experts
    read = chosen if experts_read is None else min(experts_read, tokens * model.top_k)
    flop = 2 * tokens * model.top_k * model.expert_params / shards
    return rates.grouped_s(flop, read * model.expert_bytes / shards, model.formats.experts)


def share_chosen(tokens: float, top_k: int, num_experts: int) -> float:
    """Expected share of the experts that at least one token chooses, if all are equally likely."""
    return float(1.0 - (1.0 - top_k / num_experts) ** tokens)


def _projections(model: MoeModel, rates: Rates, tokens: float, shards: int) -> float:
    attention, formats = model.attention, model.formats
    plain = FORMATS["bf16"]
    before = plain if rates.is_peak else formats.attention_in
    after = plain if rates.is_peak else formats.attention_out
    return _dense(rates, tokens, attention.in_params / shards, before) + _dense(
        rates, tokens, attention.out_params / shards, after
    )


def _elementwise(model: MoeModel, rates: Rates, tokens: float, is_moe: bool) -> float:
    """The paper's roofline, at peak rates, leaves this part out."""
    if rates.is_peak:
        return 0.0
    always, for_expert = constants.ELEMENTWISE_PASSES
    passes = always + for_expert * (model.top_k if is_moe else 1)
    return rates.memory_s(passes * tokens * model.hidden * 2)


def _dense(rates: Rates, tokens: float, params: float, weights: WeightFormat) -> float:
    return rates.dense_s(2 * tokens * params, params, weights)
