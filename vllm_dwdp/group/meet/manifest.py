# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Manifests: the facts that ranks must agree on before they map each other's memory."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm_dwdp.group.errors import ManifestMismatch

REMEDY = "start every rank with the same model and options."
REMEDIES = {
    "replicated": (
        "start every rank with the same model and options. If they are the same, vLLM derives this "
        "tensor from a rank's own experts: choose another kernel with --moe-backend, or serve this "
        "model without dwdp."
    )
}
"""What to do if ranks differ, by field of the manifest; REMEDY for all others."""


class TensorSchema(NamedTuple):
    """Name, shape, strides in elements, and dtype of one tensor of all experts."""

    layer: str
    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        strides = f"with strides {list(self.strides)}"
        return f"{self.layer}.{self.name} {list(self.shape)} {self.dtype} {strides}"


class ReplicatedTensor(NamedTuple):
    """A tensor of a layer of which each rank has its own; value: its number, or a digest."""

    layer: str
    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.name} = {self.value}"


@dataclass(frozen=True)
class Manifest:
    """Facts about one rank's model and memory; all of them must be the same on every rank.

    placement: the experts `[start, stop)` of each rank. host_experts: how many of them lie in host
    memory.
    """

    dwdp_version: str
    model_fingerprint: str
    dtype: str
    quantization: str
    placement: tuple[tuple[int, int], ...]
    host_experts: int
    memory_kind: str
    granularity: int
    tensors: tuple[TensorSchema, ...]
    replicated: tuple[ReplicatedTensor, ...]

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Read a manifest; raises ManifestMismatch if its dwdp version has other fields."""
        fields = json.loads(data)
        expected = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != expected:
            raise ManifestMismatch(
                f"expected a manifest with {sorted(expected)}, got {sorted(fields)} from dwdp "
                f"{fields.get('dwdp_version')!r}; install one version for all ranks."
            )
        fields["placement"] = tuple(map(tuple, fields["placement"]))
        fields["tensors"] = tuple(
            TensorSchema(layer, name, tuple(shape), tuple(strides), dtype)
            for layer, name, shape, strides, dtype in fields["tensors"]
        )
        fields["replicated"] = tuple(ReplicatedTensor(*one) for one in fields["replicated"])
        return cls(**fields)


def check_manifests(manifests: Sequence[Manifest], *, ranks: Sequence[int]) -> None:
    """Raise ManifestMismatch with the first difference, found the same way on every rank.

    ranks: the job's numbers of the ranks with these manifests, in order.
    """
    for rank, other in zip(ranks[1:], manifests[1:], strict=True):
        for field in dataclasses.fields(Manifest):
            values = getattr(manifests[0], field.name), getattr(other, field.name)
            if values[0] != values[1]:
                raise ManifestMismatch(
                    f"dwdp ranks {ranks[0]} and {rank} differ in {field.name}: "
                    f"{_difference(*values)}; {REMEDIES.get(field.name, REMEDY)}"
                )


def _difference(first: Any, other: Any) -> str:
    if not isinstance(first, tuple):
        return f"{first!r} against {other!r}"
    pairs = enumerate(itertools.zip_longest(first, other))
    idx, (left, right) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return f"entry {idx} is {_entry(left)} against {_entry(right)}"


def _entry(value: object) -> str:
    return "missing" if value is None else str(value)
