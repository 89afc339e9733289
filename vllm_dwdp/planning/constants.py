# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Every constant of the planner, each with its source.

"Table 1" to "Table 4" are those of arXiv 2604.01621: DeepSeek-R1 with NVFP4 experts on four GPUs of
a GB200. Table 1 has 32768 tokens per step at most and prompts of 0.8 to 1 times 8192 tokens, so
that a step holds four whole prompts of 7373 tokens on average: 29491 tokens. Its column is
milliseconds of one forward pass. Shares are shares of the peak figures in configs/hardware.

No constant belongs to one published row: they follow from Table 1, from a count of operations, or
from a public figure.
"""

from types import MappingProxyType
from typing import Final

# What kernels achieve.

ATTENTION_SHARE: Final = 0.81
"""Causal attention, as a share of the BF16 peak.

Table 1: 61 layers of four prompts take 545 TFLOP in 269.67 ms, 2.02 of GB200's 2.5 PFLOP/s.
"""

GROUPED_SHARE: Final = MappingProxyType({"bf16": 0.6, "fp8": 0.5, "fp4": 0.352})
"""Grouped GEMM of routed experts, as a share of the peak of the precision in which it multiplies.

fp4 from Table 1: 58 layers of 29491 tokens take 1205 TFLOP in 342.40 ms. bf16 and fp8 are rounded
from what DeepGEMM (FP8) and vLLM's Triton kernels (BF16) are reported to reach on Hopper.
"""

DENSE_SHARE: Final = MappingProxyType({"bf16": 0.75, "fp8": 0.65, "fp4": 0.65})
"""Dense GEMM, as a share of the peak.

What vendor libraries are commonly reported to reach for large matrices. Table 1 can't tell them
apart: see ELEMENTWISE_PASSES.
"""

MEMORY_SHARE: Final = 0.8
"""Reads and writes of memory by kernels, as a share of the peak bandwidth: a common STREAM result
for GPUs."""

ELEMENTWISE_PASSES: Final = (6, 5)
"""How often a token's hidden state in BF16 crosses memory in a layer outside of matrix products:
so often for any token, and so often for each expert that it goes to.

Norms, residuals and rotary embedding take about 6. Each expert costs 5: gather, quantise,
activation, write, weighted sum. Together 46 for DeepSeek-R1: 186 ms in Table 1. With 233 ms of
dense GEMM by DENSE_SHARE that makes 419 ms. The table has 419.19 ms as dense GEMM and others.
"""

# Copies from peers.

COPY_SHARE: Final = 0.89
"""Copies over the link when nobody else reads the same source, as a share of the link's peak.

Table 1: 275.9 GB in 429 ms is 643 GB/s with contention. Ranks copy for 37 % of their step, so a
source has (N - 2) / (N - 1) x 0.37 = 0.245 other readers on average; 643 x 1.245 = 801 GB/s.
"""

ATTENTION_SLOWDOWN: Final = 0.35
LINEAR_SLOWDOWN: Final = 0.24
"""How much slower attention, and all other work before the experts, is while a copy runs under it.

Table 1: attention takes 320.56 instead of 269.67 ms (19 % more), dense GEMM and others together
473.60 instead of 419.19 ms (13 % more). A copy runs under them for 429 of their 794 ms, or 54 %:
0.19 / 0.54 and 0.13 / 0.54. Grouped GEMM isn't slowed (337.42 against 342.40 ms).
"""

# Expert parallelism and tensor parallelism.

EXCHANGE_SHARE: Final = 0.744
"""All-to-all over the link, as a share of the link's peak.

Table 1: 126.74 ms for 58 layers. A token goes once to each rank that has an expert of its choice,
in the precision of the experts, and comes back in BF16: 84.9 GB.
"""

EXPERT_LOAD_CORRELATION: Final = 0.61
"""How far the tokens of one layer and step agree in the experts that they choose: 0 if each chooses
for itself, 1 if all choose the same.

Table 1: expert parallelism waits 161.85 ms. Different lengths explain 32 ms of it (see `skew`). The
rest is 38 % of the grouped GEMM: the fullest of four ranks, each with 64 of 256 experts. So the
load of one expert has a standard deviation of 3.4 times its mean; with full agreement on 8 of 256
experts it would be sqrt(256 / 8 - 1) = 5.6 times. Other jitter of barriers is in this figure too.
"""

LARGEST_OF: Final = (0.0, 0.0, 0.5642, 0.8463, 1.0294, 1.1630, 1.2672, 1.3522, 1.4236)
"""Expected largest of n standard normal values, for n from 0 to 8: textbook order statistics.
Larger n: see `skew.largest_of`."""

COLLECTIVE_S: Final = 15e-6
"""Seconds that a collective takes however little it carries: NCCL's latency for small messages
within one NVLink domain is commonly 10 to 20 microseconds."""

SYNCHRONOUS_COLLECTIVES: Final = 2
"""All-to-alls, or all-reduces, in a layer: one before the experts and one after them (expert
parallelism), one after attention and one after the MLP (tensor parallelism)."""

# Memory.

GPU_MEMORY_SHARE: Final = 0.92
"""vLLM's default of --gpu-memory-utilization (0.32)."""

RESERVED_BYTES: Final = 2 * 10**9
"""Memory of a GPU for the driver's context, CUDA graphs and buffers of libraries: an estimate."""

NUM_SLOTS: Final = 2
"""The default of dwdp.num_slots."""

# Decisions.

FAST_LINK: Final = 0.7
"""Peers' memory is read in place if it is at least this share as fast as own memory. The same as
device.bandwidth.FAST_LINK; importing that would import PyTorch."""

HIDE_FACTOR: Final = 1.2
"""Recommended steps compute this many times as long as their copies: the factor of
dwdp.min_tokens_per_step "auto", and of AsyncEP (arXiv 2605.02960)."""

TOKENS_STEP: Final = 1024
"""Recommended numbers of tokens are multiples of this."""

MOST_TOKENS: Final = 131072
"""No step larger than this is recommended: activations of such a step take several GB."""

MIN_GAIN: Final = 1.02
"""DWDP must be this many times as fast as the best alternative to be recommended."""

MAX_DECODE_COST: Final = 1.25
"""Decode with DWDP may take this many times as long as with expert parallelism, no more."""

DECODE_BATCHES: Final = (1, 8, 32, 64, 128, 256)
SWEEP_ISL: Final = (1024, 2048, 4096, 8192, 16384, 32768)
SWEEP_SIZES: Final = (2, 4, 8, 16)
"""What tables show: sequences in a decode step of a rank, prompt lengths, ranks."""
