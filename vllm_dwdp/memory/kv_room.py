# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How many tokens of KV cache a rank has, beside what other ways to hold experts would leave it."""

from typing import NamedTuple

from vllm_dwdp.layout.rank_layout import RankLayout


class KvRoom(NamedTuple):
    """Tokens of KV cache that fit into the memory that one rank has for experts and KV cache.

    tokens: as it is. with_all_experts: if the rank held all experts in its own memory.
    with_expert_parallelism: if it held its even share of them, and nothing of others.
    """

    tokens: int
    with_all_experts: int
    with_expert_parallelism: int

    @classmethod
    def make(
        cls, layout: RankLayout, *, num_tokens: int, kv_bytes: int, held_bytes: int
    ) -> "KvRoom":
        """num_tokens, kv_bytes: of the KV cache. held_bytes: what the rank's experts take.

        held_bytes are in the memory of the KV cache: own experts, copies, private pages and slots.
        """
        all_bytes = sum(tensor.num_bytes for layer in layout.layouts for tensor in layer)

        def tokens_beside(expert_bytes: int) -> int:
            return max(0, (kv_bytes + held_bytes - expert_bytes) * num_tokens // kv_bytes)

        return cls(
            num_tokens, tokens_beside(all_bytes), tokens_beside(all_bytes // layout.num_ranks)
        )
