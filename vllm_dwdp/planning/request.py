# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a user asks the planner: a model, hardware, and a load."""

from dataclasses import dataclass

from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.hardware import Hardware
from vllm_dwdp.planning.job import ENDLESS, Job
from vllm_dwdp.planning.model import MoeModel
from vllm_dwdp.planning.workload import Workload

DEFAULT_MAX_TOKENS = 32768
"""Tokens per step without further word: those of configs/prefill_8_gpus.yaml."""

_COUNTS = ("dwdp_size", "isl", "batch_size", "max_num_batched_tokens", "tokens_in_flight")


@dataclass(frozen=True)
class Request:
    """dwdp_size: ranks. isl: tokens of the longest prompt. length_ratio: as in Workload.

    batch_size: prompts in a step; default: as many as fit.
    max_num_batched_tokens: tokens of a step at most; default: those of the batch, or 32768.
    tokens_in_flight: tokens that really wait on a rank, if fewer; default: enough to fill steps.
    num_experts_per_worker: as in DwdpConfig. job: how long it goes on, and a slow rank.
    """

    model: MoeModel
    hardware: Hardware
    dwdp_size: int
    isl: int
    length_ratio: float = 1.0
    batch_size: int | None = None
    max_num_batched_tokens: int | None = None
    tokens_in_flight: int | None = None
    num_experts_per_worker: int | None = None
    job: Job = ENDLESS

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PlanError(f"expected {_option(name)} of at least 1, got {value}.")
        if not 0 < self.length_ratio <= 1:
            raise PlanError(
                f"expected --length-ratio above 0 and at most 1, got {self.length_ratio}."
            )
        if self.dwdp_size > self.hardware.domain:
            raise PlanError(
                f"expected at most {self.hardware.domain} ranks, which is how many reach each "
                f"other's memory on {self.hardware.name}, got --dwdp-size {self.dwdp_size}."
            )

    @property
    def max_tokens(self) -> int:
        """The limit of tokens in a step."""
        batch = self.batch_size * self.isl if self.batch_size else None
        return self.max_num_batched_tokens or batch or DEFAULT_MAX_TOKENS

    def work(self, *, is_chunked: bool = True, is_balanced: bool = False) -> Workload:
        """A step. is_balanced: with prompts that are all as long as the longest."""
        ratio = 1.0 if is_balanced else self.length_ratio
        full = Workload.full(self.max_tokens, self.isl, length_ratio=ratio, is_chunked=is_chunked)
        batch = (self.batch_size or float("inf")) * full.mean_length
        tokens = min(full.tokens, batch, self.tokens_in_flight or float("inf"))
        return Workload(tokens, self.isl, ratio, is_chunked)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
