# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs the kernel of one case of tests/contract/formats over views and a slot of a device.

Stock vLLM loads, processes and runs one layer with all experts. Two ranks load and process theirs;
rank 0's views and slot show the experts of both, and its kernel runs in place and on the slot.

Import this module once `vllm` can be imported.
"""

import dataclasses
from typing import Any

import torch
from cases import Case
from compare import differences, unlike
from layers import NUM_EXPERTS, build, load, make_checkpoint, process, rank_layers
from parts import make_device
from rank_pair import RankPair
from sharing import all_experts, release
from sharing import bytes_of as bytes_of_rows
from vllm.config import set_current_vllm_config
from vllm.platforms import current_platform

from vllm_dwdp.config import ConfigError, FetchMode

NUM_TOKENS, TOP_K = 64, 2
INPUT_SIZES = (2.0**-6, 2.0**-16, 1.0, 16.0)
"""Standard deviations of inputs to try; with some of them, outputs overflow or are zero."""

LARGER = {"hidden": 2048, "intermediate": 1024}
"""Sizes with which experts of every format span pages of the driver; odd sizes stay."""


class NotRunHere(Exception):
    """Stock vLLM can't build or run the case on this machine, or dwdp refuses it."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """x [tokens, hidden], the router's logits, and the weights and ids that it would choose."""

    x: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor

    @classmethod
    def random(cls, case: Case, size: float) -> "Inputs":
        torch.manual_seed(1)
        on = current_platform.device_type
        x = torch.randn(NUM_TOKENS, case.hidden, device=on) * size
        logits = torch.randn(NUM_TOKENS, NUM_EXPERTS, device=on).to(case.dtype)
        weights, ids = logits.float().softmax(-1).topk(TOP_K)
        return cls(x.to(case.dtype), logits, weights, ids.int())

    def routing(self, is_monolithic: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The arguments behind x of a kernel that routes by itself, or of one that doesn't."""
        return (self.logits, None) if is_monolithic else (self.weights, self.ids)


def enlarged(case: Case) -> Case:
    has_usual_sizes = case.hidden == 1024 and case.intermediate == 256
    return dataclasses.replace(case, **LARGER) if has_usual_sizes else case


def run(case: Case, index: int) -> dict[str, Any]:
    """Figures of a case. Raises NotRunHere, and AssertionError for bits that a slot changes."""
    whole, checkpoint, inputs, expected = stock(case, index)
    layer, rows, shared = adopted(case, index + 1, checkpoint)
    device = make_device()
    pair = RankPair.of_weights(device, [shared], num_slots=1)
    pair.make_scheduler()
    pair.scheduler.wait(0, 1)
    device.synchronize(pair.stream)

    def shown(views: Any) -> list[torch.Tensor]:
        data = [device.bytes_of(view) for view in views[0]]
        return [
            one.over(of[: like.nbytes])
            for one, of, like in zip(all_experts(rows), data, shared.values(), strict=True)
        ]

    with set_current_vllm_config(layer.probe_config):
        layer.bind(shown(pair.direct))
        layer.bind_slot(shown(pair.on_slot))
    layer.settle_readers()
    routing = inputs.routing(layer.quant_method.is_monolithic)
    direct, on_slot = (
        layer.run(mode, inputs.x.clone(), *routing).clone()
        for mode in (FetchMode.DIRECT, FetchMode.PREFETCH)
    )
    assert torch.equal(direct, on_slot), f"a slot gives other bits: {unequal(on_slot, direct)}"
    other = unequal(direct, expected)
    return {
        "kernel": type(layer.quant_method.moe_kernel.fused_experts).__name__,
        "tensors": len(shared),
        "copied_mib": round(pair.layout.missing_bytes(0) / 2**20, 2),
        "largest": f"{expected.abs().max().item():.3g}",
        "other_outputs": other,
        "other_tensors": sorted(differences(layer, whole)) if other else [],
    }


def stock(case: Case, index: int) -> tuple[Any, dict[str, torch.Tensor], Inputs, torch.Tensor]:
    """Stock vLLM's layer, its checkpoint, inputs, and the output [tokens, hidden] for them."""
    try:
        whole = build(case, index)
        checkpoint = make_checkpoint(whole)
        load(whole, checkpoint)
        process(whole)
        for size in INPUT_SIZES:
            inputs = Inputs.random(case, size)
            output = stock_output(whole, inputs)
            if output.isfinite().all() and output.any():
                return whole, checkpoint, inputs, output
    except Exception as error:
        raise NotRunHere(f"{type(error).__name__}: {error}".split("\n")[0][:160]) from error
    raise NotRunHere("stock vLLM's outputs overflow, or are zero")


def stock_output(whole: Any, inputs: Inputs) -> torch.Tensor:
    is_monolithic = whole.quant_method.is_monolithic
    forward = whole.forward_monolithic if is_monolithic else whole.forward_modular
    output: torch.Tensor = forward(inputs.x.clone(), *inputs.routing(is_monolithic))
    return output.clone()


def adopted(
    case: Case, index: int, checkpoint: dict[str, torch.Tensor]
) -> tuple[Any, list[Any], dict[str, torch.Tensor]]:
    """Rank 0's layer without its experts, its rows, and the experts of both ranks.

    The latter are tensors uint8 [num_experts, row_bytes] by name, in CPU memory.
    """
    try:
        layers = rank_layers(case, index, checkpoint, lambda layer: None)
        rows = [layer.expert_rows() for layer in layers]
        if names := unlike(layers):
            raise ConfigError(f"ranks 0 and 1 differ in replicated: {', '.join(sorted(names))}")
    except ConfigError as error:
        raise NotRunHere(f"refused: {error}") from error
    parts = [
        [
            bytes_of_rows(tensor, one).cpu().view(one.num_experts, -1)
            for tensor, one in zip(layer.tensors_of(of), of, strict=True)
        ]
        for layer, of in zip(layers, rows, strict=True)
    ]
    shared = {one.name: torch.cat(of) for one, *of in zip(rows[0], *parts, strict=True)}
    if kept := release(layers[0], rows[0]):
        raise AssertionError(f"a released layer keeps the memory of {kept}")
    return layers[0], rows[0], shared


def unequal(found: torch.Tensor, expected: torch.Tensor) -> str:
    """How many outputs differ, and the largest difference beside the largest output; or ""."""
    differ = (found != expected).float().mean().item()
    if not differ:
        return ""
    worst = torch.nan_to_num((found - expected).abs().float(), nan=torch.inf).max()
    return f"{differ:.2%}, by up to {(worst / expected.abs().max()).item():.2g} of the largest"
