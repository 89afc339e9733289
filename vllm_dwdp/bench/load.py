# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The requests of a round."""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Load:
    """The requests that each client sends; there is a client for each rank.

    Lengths are in tokens. Prompts are random tokens, and their lengths vary by up to `variation` of
    `input_tokens`, up and down. max_concurrency: requests of a client that are under way.
    """

    num_prompts: int = 40
    max_concurrency: int = 16
    input_tokens: int = 512
    variation: float = 0.9
    output_tokens: int = 16

    @property
    def longest(self) -> int:
        """The most tokens that a request may have, prompt and answer together."""
        return ceil(self.input_tokens * (1 + self.variation)) + self.output_tokens
