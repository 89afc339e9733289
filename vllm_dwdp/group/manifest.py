# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What ranks must agree on before one maps the other's memory."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vllm_dwdp.group.errors import ManifestMismatch


class TensorSchema(NamedTuple):
    """One expert tensor: `[num_experts, ...]`."""

    layer: str
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Manifest:
    """One rank's account of itself; all of it must be the same on every rank."""

    dwdp_version: str
    model_fingerprint: str
    dtype: str
    quantization: str
    placement: tuple[tuple[int, int], ...]
    memory_kind: str
    granularity: int
    tensors: tuple[TensorSchema, ...]

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        fields = json.loads(data)
        fields["placement"] = tuple(map(tuple, fields["placement"]))
        fields["tensors"] = tuple(
            TensorSchema(layer, name, tuple(shape), dtype)
            for layer, name, shape, dtype in fields["tensors"]
        )
        return cls(**fields)


def check_manifests(manifests: Sequence[Manifest]) -> None:
    """Raise ManifestMismatch with the first difference, found the same way on every rank."""
    first = manifests[0]
    for rank, other in enumerate(manifests[1:], start=1):
        for field in dataclasses.fields(Manifest):
            ours, theirs = getattr(first, field.name), getattr(other, field.name)
            if ours != theirs:
                raise ManifestMismatch(
                    f"dwdp ranks 0 and {rank} of a group differ in {field.name}: "
                    f"{_difference(ours, theirs)}; "
                    "start every rank with the same model and options."
                )


def _difference(ours: object, theirs: object) -> str:
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        if len(ours) != len(theirs):
            return f"{len(ours)} entries against {len(theirs)}"
        ours, theirs = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
    return f"{ours!r} against {theirs!r}"
