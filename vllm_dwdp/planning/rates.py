# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Rates at which hardware works: its peaks, or what kernels achieve of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.formats import WeightFormat
from vllm_dwdp.planning.hardware import PRECISIONS, Hardware


@dataclass(frozen=True)
class Shares:
    """Achieved rates as shares of peaks; dense and grouped GEMM by precision."""

    attention: float
    dense: Mapping[str, float]
    grouped: Mapping[str, float]
    memory: float
    copy: float
    exchange: float


_ONE = dict.fromkeys(PRECISIONS, 1.0)
PEAK = Shares(1.0, _ONE, _ONE, 1.0, 1.0, 1.0)
ACHIEVED = Shares(
    constants.ATTENTION_SHARE,
    constants.DENSE_SHARE,
    constants.GROUPED_SHARE,
    constants.MEMORY_SHARE,
    constants.COPY_SHARE,
    constants.EXCHANGE_SHARE,
)


@dataclass(frozen=True)
class Rates:
    """Seconds of single operations on one rank of a group of `num_ranks`.

    is_peak: whether these are the hardware's peaks, and all of attention runs in BF16. That is how
    the paper draws its roofline, whatever the checkpoint's format.
    """

    hardware: Hardware
    num_ranks: int
    shares: Shares
    is_peak: bool = False

    @classmethod
    def peak(cls, hardware: Hardware, num_ranks: int) -> "Rates":
        return cls(hardware, num_ranks, PEAK, is_peak=True)

    @classmethod
    def achieved(cls, hardware: Hardware, num_ranks: int) -> "Rates":
        """With the shares of `constants`, and those of the profile in their place."""
        return cls(hardware, num_ranks, _with_profile(hardware))

    def attention_s(self, flop: float) -> float:
        """Seconds of scores and weighted values."""
        return flop / (self.hardware.flops["bf16"] * self.shares.attention)

    def dense_s(self, flop: float, params: float, weights: WeightFormat) -> float:
        """Seconds of a dense product: the longer of multiplying, and of reading its weights."""
        rate = self._flops(weights, self.shares.dense)
        return max(flop / rate, self.memory_s(params * weights.bytes_per_param))

    def grouped_s(self, flop: float, num_bytes: float, weights: WeightFormat) -> float:
        """Seconds of a grouped product over experts, whose weights are read once."""
        return max(flop / self._flops(weights, self.shares.grouped), self.memory_s(num_bytes))

    def memory_s(self, num_bytes: float) -> float:
        return num_bytes / (self.hardware.memory_rate * self.shares.memory)

    @property
    def copy_rate(self) -> float:
        """Bytes per second of copies out of peers' memory, without contention."""
        return self.hardware.link_among(self.num_ranks) * self.shares.copy

    def copy_s(self, num_bytes: float) -> float:
        """Seconds of a copy out of peers' memory, without contention."""
        return num_bytes / self.copy_rate

    @property
    def exchange_rate(self) -> float:
        """Bytes per second that a rank sends in a collective."""
        return self.hardware.link_among(self.num_ranks) * self.shares.exchange

    @property
    def reads_in_place(self) -> bool:
        """Whether peers' memory is about as fast as own memory, so that nothing is copied."""
        own = self.hardware.memory_rate * self.shares.memory
        return self.copy_rate >= constants.FAST_LINK * own

    def _flops(self, weights: WeightFormat, shares: Mapping[str, float]) -> float:
        precision = self.hardware.precision(weights.precision)
        return self.hardware.flops[precision] * shares[precision]


def _with_profile(hardware: Hardware) -> Shares:
    given = hardware.shares
    return Shares(
        given.get("attention", ACHIEVED.attention),
        dict.fromkeys(PRECISIONS, given["dense"]) if "dense" in given else ACHIEVED.dense,
        dict.fromkeys(PRECISIONS, given["grouped"]) if "grouped" in given else ACHIEVED.grouped,
        given.get("memory", ACHIEVED.memory),
        given.get("copy", ACHIEVED.copy),
        given.get("exchange", ACHIEVED.exchange),
    )
