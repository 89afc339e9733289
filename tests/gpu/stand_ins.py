# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Stand-ins in PyTorch for the compiled operators of vLLM that a small Qwen3-MoE needs.

vLLM's compiled libraries are too large to carry to a machine without a network. A packed vLLM has
this file in the place of `_C_stable_libtorch`, which vLLM imports on GPUs. The Triton kernels are
vLLM's own.

* An operator here does what vLLM's does for unquantised and block FP8 MoE layers, and refuses the
  arguments of other uses.
* No shape depends on values, and no operator waits for the GPU, so that graphs can capture them.
"""

import torch

SIGNATURES = {
    "_C::silu_and_mul": "(Tensor! result, Tensor input) -> ()",
    "_C::silu_and_mul_per_block_quant": (
        "(Tensor! out, Tensor input, Tensor! scales, int group_size, Tensor? scale_ub, "
        "bool is_scale_transposed) -> ()"
    ),
    "_C::per_token_group_fp8_quant": (
        "(Tensor input, Tensor! output_q, Tensor! output_s, int group_size, float eps, "
        "float fp8_min, float fp8_max, bool scale_ue8m0, bool column_major_scales, "
        "bool tma_aligned_scales) -> ()"
    ),
    "_C::get_cuda_view_from_cpu_tensor": "(Tensor cpu_tensor) -> Tensor",
    "_moe_C::topk_softmax": (
        "(Tensor! topk_weights, Tensor! topk_indices, Tensor! token_expert_indices, "
        "Tensor gating_output, bool renormalize, Tensor? bias, Tensor? is_padding) -> ()"
    ),
    "_moe_C::moe_sum": (
        "(Tensor input, Tensor! output, Tensor? topk_ids, Tensor? expert_map) -> ()"
    ),
    "_moe_C::moe_align_block_size": (
        "(Tensor topk_ids, int num_experts, int block_size, Tensor! sorted_token_ids, "
        "Tensor! experts_ids, Tensor! num_tokens_post_pad, Tensor? expert_map, "
        "Tensor? scatter_idx) -> ()"
    ),
}
"""Schemas by operator; the function with the operator's name implements it."""

NOT_SUPPORTED = (
    *("cutlass_scaled_mm_supports_fp8", "cutlass_scaled_mm_supports_block_fp8"),
    *("cutlass_scaled_mm_supports_fp4", "cutlass_group_gemm_supported"),
)
"""Operators of `_C` by which vLLM asks at import which kernels it has; the answer is none."""


def silu_and_mul(result, input):
    """result [n, d]: silu of the first half of input [n, 2 d], times the second half."""
    gate, up = input.chunk(2, dim=-1)
    torch.mul(torch.nn.functional.silu(gate), up, out=result)


def per_token_group_fp8_quant(
    input,
    output_q,
    output_s,
    group_size,
    eps,
    fp8_min,
    fp8_max,
    scale_ue8m0,
    column_major_scales,
    tma_aligned_scales,
):
    """Quantise each group of neighbouring values of a row with its own scale.

    The scales, output_s, may be strided.
    """
    assert not scale_ue8m0, "the stand-in knows no scales that are powers of two"
    groups = input.float().unflatten(-1, (-1, group_size))
    quantise(groups, output_q, output_s, groups.abs().amax(-1).clamp(min=eps) / fp8_max)


def silu_and_mul_per_block_quant(out, input, scales, group_size, scale_ub, is_scale_transposed):
    """`silu_and_mul`, then quantise in groups; scales may be strided."""
    assert scale_ub is None, "the stand-in knows no bound of the scales"
    gate, up = input.float().chunk(2, dim=-1)
    groups = (torch.nn.functional.silu(gate) * up).unflatten(-1, (-1, group_size))
    largest = torch.finfo(out.dtype).max
    smallest_scale = 1 / (largest * 512)
    quantise(groups, out, scales, (groups.abs().amax(-1) / largest).clamp(min=smallest_scale))


def quantise(groups, output, output_scales, scales):
    """Write groups [tokens, groups, size] divided by scales [tokens, groups], and the scales."""
    limits = torch.finfo(output.dtype)
    quantised = (groups / scales.unsqueeze(-1)).clamp(limits.min, limits.max)
    output.copy_(quantised.flatten(-2).to(output.dtype))
    output_scales.copy_(scales)


class HostArray:
    """Host memory that the GPU reads at the same address, with CUDA's array interface."""

    def __init__(self, pinned):
        self.pinned = pinned
        self.__cuda_array_interface__ = {
            "data": (pinned.data_ptr(), False),
            "shape": (pinned.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


def get_cuda_view_from_cpu_tensor(cpu_tensor):
    """A tensor on the GPU over the same memory, which must be pinned."""
    assert cpu_tensor.is_pinned() and cpu_tensor.is_contiguous(), "expected dense pinned memory"
    seen = torch.as_tensor(HostArray(cpu_tensor), device="cuda")
    return seen.view(cpu_tensor.dtype).view(cpu_tensor.shape)


def topk_softmax(
    topk_weights, topk_indices, token_expert_indices, gating_output, renormalize, bias, is_padding
):
    """The most likely experts of each token; padding gets experts -1 with weights of zero."""
    assert bias is None, "the stand-in knows no bias that corrects the choice"
    weights, experts = gating_output.float().softmax(-1).topk(topk_weights.shape[-1])
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    if is_padding is not None:
        weights = weights.masked_fill(is_padding.unsqueeze(-1), 0)
        experts = experts.masked_fill(is_padding.unsqueeze(-1), -1)
    topk_weights.copy_(weights)
    topk_indices.copy_(experts)
    num_tokens, top_k = topk_weights.shape
    rows = torch.arange(num_tokens, device=experts.device).unsqueeze(1)
    choices = torch.arange(top_k, device=experts.device)
    token_expert_indices.copy_(choices * num_tokens + rows)


def moe_sum(input, output, topk_ids, expert_map):
    """The sum of input [tokens, top_k, hidden] over the experts of each token."""
    assert expert_map is None, "the stand-in knows no expert parallelism"
    torch.sum(input, dim=1, out=output)


def moe_align_block_size(
    topk_ids,
    num_experts,
    block_size,
    sorted_token_ids,
    experts_ids,
    num_tokens_post_pad,
    expert_map,
    scatter_idx,
):
    """Sort choices by expert, and pad those of each expert to whole blocks with an invalid choice.

    Ids below zero are padding and choose nothing.
    """
    assert expert_map is None and scatter_idx is None, "the stand-in knows no expert parallelism"
    chosen = topk_ids.flatten().long()
    is_real = (chosen >= 0) & (chosen < num_experts)
    chosen = torch.where(is_real, chosen, num_experts)
    counts = torch.zeros(num_experts + 1, dtype=torch.long, device=chosen.device)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen))
    padded = (counts[:-1] + block_size - 1) // block_size * block_size
    ends = padded.cumsum(0)
    order = chosen.argsort(stable=True)
    places = _places(chosen[order], counts, ends - padded, beyond=len(sorted_token_ids))
    filled = sorted_token_ids.new_full((len(sorted_token_ids) + 1,), chosen.numel())
    filled.scatter_(0, places, order.to(filled.dtype))
    sorted_token_ids.copy_(filled[:-1])
    starts = torch.arange(len(experts_ids), device=chosen.device) * block_size
    of_block = torch.searchsorted(ends, starts, right=True)
    experts_ids.copy_(torch.where(of_block < num_experts, of_block, 0))
    num_tokens_post_pad.copy_(ends[-1:])


def _places(sorted_experts, counts, first_places, *, beyond):
    """The place of each choice, sorted by expert; choices of no expert get the place `beyond`."""
    first_ranks = counts.cumsum(0) - counts
    ranks = torch.arange(len(sorted_experts), device=counts.device) - first_ranks[sorted_experts]
    first_places = torch.cat([first_places, first_places.new_full((1,), beyond)])
    return (first_places[sorted_experts] + ranks).clamp(max=beyond)


def register():
    """Define the operators. They exist as long as the returned libraries."""
    libraries = {}
    for operator, signature in SIGNATURES.items():
        namespace, name = operator.split("::")
        if namespace not in libraries:
            libraries[namespace] = torch.library.Library(namespace, "FRAGMENT")
        libraries[namespace].define(name + signature)
        libraries[namespace].impl(name, globals()[name], "CompositeExplicitAutograd")
    for name in NOT_SUPPORTED:
        libraries["_C"].define(f"{name}(int capability) -> bool")
        libraries["_C"].impl(name, lambda capability: False, "CompositeExplicitAutograd")
    return libraries


if __name__ == "vllm._C_stable_libtorch":
    _LIBRARIES = register()
