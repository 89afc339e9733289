# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Shares the experts of every kind of MoE layer that vLLM can build, and compares with the whole.

    python tests/contract/formats/probe.py [--json FILE] [--page docs/formats.md] [PATTERN ...]

TRITON_KERNELS_PATH names the folder that has triton_kernels (vllm/third_party of vLLM's wheel for
CUDA); without it, the kernels that need it can't be built.

For each case, vLLM builds one layer with all experts, and dwdp builds the layer of each of two
ranks. All are loaded from one random checkpoint, and processed by vLLM. Then the ranks' rows are
put together, each rank's layer is bound to them, and everything that it reaches is compared bit by
bit with what the whole layer reaches. No kernel runs.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]
import claims_cuda  # isort: skip - before anything of vLLM
import plants
import table
import torch
from cases import Case, all_cases, model_config
from reach import equal, reached
from torch.multiprocessing.reductions import StorageWeakRef
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

from vllm_dwdp.config import ConfigError, FetchMode
from vllm_dwdp.engine.moe.context import MoeContext
from vllm_dwdp.engine.moe.expert_rows import replicated_tensors
from vllm_dwdp.engine.moe.fingerprint import describe_value
from vllm_dwdp.engine.moe.input_scales import is_input_scale
from vllm_dwdp.engine.moe.kernel_recipe import note_arguments
from vllm_dwdp.engine.moe.layer_classes import new_layer

NUM_RANKS = 2
NUM_EXPERTS = int(os.environ.get("NUM_EXPERTS", 7))
"""The ranks have 4 and 3 experts. With 2, they have one each."""

SAME = "same bits"
SAME_VALUES = "same values, other bits"
TWO_FACTORS = (
    *("w13_weight_scale", "w13_weight_scale_2", "w2_weight_scale", "w2_weight_scale_2"),
    *("_w1.scale", "_w2.scale", "_w1.alpha_or_gscale", "_w2.alpha_or_gscale"),
)
"""Ends of the paths to scales whose product counts, see same_scales."""

UNUSED = {"w13_input_global_scale", "w2_input_global_scale"}
"""Parameters that no kernel reads once they are processed, as compressed-tensors leaves them."""


Plant = Callable[[Any], None]


@dataclasses.dataclass
class Result:
    """What a case showed.

    kernel: the name of vLLM's class. shared: names of the tensors that ranks share. different: what
    differs from the whole layer, by path. refused: dwdp's sentence. not_built: why stock vLLM can't
    build the layer here.
    """

    case: str
    kernel: str = ""
    shared: list[str] = dataclasses.field(default_factory=list)
    different: list[str] = dataclasses.field(default_factory=list)
    has_other_bits: bool = False
    refused: str = ""
    not_built: str = ""

    @property
    def verdict(self) -> str:
        if self.not_built:
            return f"not built here: {self.not_built}"
        if self.refused:
            return f"refused: {self.refused}"
        if self.different:
            return f"DIFFERENT: {', '.join(self.different)}"
        return SAME_VALUES if self.has_other_bits else SAME


def build(case: Case, index: int) -> Any:
    config = VllmConfig()
    if case.needs_model:
        object.__setattr__(config, "model_config", model_config(case.dtype))
    with set_current_vllm_config(config):
        runner = FusedMoEFactory(
            num_experts=NUM_EXPERTS,
            top_k=2,
            hidden_size=case.hidden,
            intermediate_size=case.intermediate,
            params_dtype=case.dtype,
            has_bias=case.has_bias,
            prefix=f"model.layers.{index}.mlp.experts",
            quant_config=case.config(),
            activation=case.activation,
            **case.options,
        )
    layer = runner.routed_experts
    layer.of_probe = config
    for name, parameter in list(layer._parameters.items()):
        if parameter is not None and parameter.is_meta:
            made = torch.empty(parameter.shape, dtype=parameter.dtype)
            layer._parameters[name] = torch.nn.Parameter(made, requires_grad=False)
    if case.has_bias:
        layer._loaded_expert_biases |= {"w13_bias", "w2_bias"}
    return layer


def make_checkpoint(layer: Any) -> dict[str, torch.Tensor]:
    """Random tensors for a whole layer; the scales of its experts differ by up to 2 ** 7."""
    torch.manual_seed(0)
    spread = torch.tensor([2.0 ** -((5 * expert + 3) % 8) for expert in range(NUM_EXPERTS)])
    made = {}
    for name, parameter in layer.named_parameters():
        tensor = _random(name, parameter.data)
        is_scale = "scale" in name and tensor.numel() and tensor.dtype.is_floating_point
        if is_scale and tensor.dim() and tensor.shape[0] == NUM_EXPERTS:
            factors = spread.view(-1, *[1] * (tensor.dim() - 1))
            tensor = (tensor.float() * factors).to(tensor.dtype)
        made[name] = tensor
    return made


def _random(name: str, like: torch.Tensor) -> torch.Tensor:
    if "g_idx" in name and like.numel():
        return (torch.arange(like.shape[-1], dtype=torch.int32) // 128).expand(like.shape).clone()
    if "shape" in name:
        return torch.ones_like(like)
    if like.dtype.is_floating_point:
        is_weight = "weight" in name and "scale" not in name
        if is_weight:
            size = 1 if like.dtype == torch.float8_e4m3fn else 1 / 8
            return (torch.randn(like.shape) * size).to(like.dtype)
        return (torch.rand(like.shape) + 0.5).to(like.dtype)
    if not like.numel():
        return like.clone()
    size = like.element_size()
    random = torch.randint(0, 100, (*like.shape, size), dtype=torch.uint8)
    return random.view(like.dtype).reshape(like.shape)


def load(layer: Any, checkpoint: dict[str, torch.Tensor], first: int = 0) -> None:
    """Load a layer's rows. Activation scales go through vLLM's own loader, expert by expert."""
    for name, parameter in layer.named_parameters():
        whole = checkpoint[name]
        if is_input_scale(name):
            load_input_scales(layer, name, parameter, whole)
        elif whole.shape == parameter.shape:
            parameter.data.copy_(whole)
        else:
            parameter.data.copy_(whole[first : first + parameter.shape[0]])


def load_input_scales(
    layer: Any, name: str, parameter: torch.nn.Parameter, whole: torch.Tensor
) -> None:
    for expert in range(NUM_EXPERTS):
        for shard in ("w1", "w3") if name.startswith("w13") else ("w2",):
            # compressed-tensors has one scale for both
            has_two = whole.dim() == 2 and "ompressed" not in type(layer.quant_method).__name__
            scale = whole[expert].flatten()[-1 if has_two and shard == "w3" else 0]
            layer.weight_loader(parameter, scale, f"experts.{expert}.{name}", shard, expert)


def process(layer: Any) -> None:
    with set_current_vllm_config(layer.of_probe):
        layer.quant_method.process_weights_after_loading(layer)


def rank_layers(
    case: Case, index: int, checkpoint: dict[str, torch.Tensor], plant: Plant
) -> list[Any]:
    layers = []
    for rank in range(NUM_RANKS):
        MoeContext(rank=rank, dwdp_size=NUM_RANKS, num_experts_per_worker=None).enter()
        stock, RoutedExperts.__new__ = RoutedExperts.__new__, staticmethod(new_layer)
        try:
            layer = build(case, index + rank)
        finally:
            RoutedExperts.__new__ = stock
        load(layer, checkpoint, layer.local_experts.start)
        layer.input_scales.complete(layer._parameters)
        process(layer)
        plant(layer)
        layers.append(layer)
    return layers


def share(layers: list[Any]) -> list[str]:
    """Bind each rank's layer to the rows of all ranks; returns the names of what is shared."""
    all_rows = [layer.expert_rows() for layer in layers]
    shared = []
    whole = []
    for rows in zip(*all_rows, strict=True):
        assert len({(one.name, one.row_bytes) for one in rows}) == 1, [one.name for one in rows]
        parts = [
            bytes_of(layer.tensors_of([one])[0], one)
            for layer, one in zip(layers, rows, strict=True)
        ]
        whole.append(torch.cat(parts))
        shared.append(rows[0].name)
    for layer, rows in zip(layers, all_rows, strict=True):
        if kept := release(layer, rows):
            raise AssertionError(f"a released layer keeps the memory of {kept}")
        views = [one.over(data.clone(), NUM_EXPERTS) for one, data in zip(rows, whole, strict=True)]
        with set_current_vllm_config(layer.of_probe):
            layer.bind(views)
    return shared


def release(layer: Any, rows: Any) -> list[str]:
    """Release a layer's local experts; returns the names of those whose memory stays."""
    memory = {
        one.name: StorageWeakRef(tensor.untyped_storage())
        for one, tensor in zip(rows, layer.tensors_of(rows), strict=True)
    }
    layer.release(rows)
    if not all(storage.expired() for storage in memory.values()):
        gc.collect()
    return [name for name, storage in memory.items() if not storage.expired()]


def bytes_of(tensor: torch.Tensor, rows: Any) -> torch.Tensor:
    start = tensor.storage_offset() * tensor.itemsize
    size = rows.num_experts * rows.row_bytes
    flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage(), start, (size,), (1,))
    return flat.clone()


def differences(layer: Any, whole: Any) -> set[str]:
    tensors, values = reached(layer)
    expected_tensors, expected_values = reached(whole)
    found = {
        path
        for path, tensor in expected_tensors.items()
        if path not in tensors or not equal(tensors[path], tensor)
    }
    found |= {
        f"{path} is {values[path]!r}, not {value!r}"
        for path, value in expected_values.items()
        if path in values and values[path] != value
    }
    return found


def unlike(layers: list[Any]) -> set[str]:
    """Tensors that ranks don't share and that are different; dwdp refuses such ranks."""
    of_ranks = [
        {
            name: describe_value(tensor)
            for name, tensor in replicated_tensors(layer, len(layer.local_experts)).items()
        }
        for layer in layers
    ]
    return {name for name, value in of_ranks[0].items() if of_ranks[1].get(name) != value}


def check_slot(layer: Any) -> set[str]:
    """Bind a reader to other views of the same bytes; returns what it still has of the first."""
    (direct,) = layer._readers.values()
    views = [
        one.over(bytes_of(view, one.with_experts(NUM_EXPERTS)), NUM_EXPERTS)
        for one, view in zip(layer.rows, layer.tensors_of(layer.rows), strict=True)
    ]
    with set_current_vllm_config(layer.of_probe):
        layer.bind_slot(views)
    layer.settle_readers()
    in_place = {t.untyped_storage().data_ptr() for t in direct.tensors_of(layer.rows)}
    found = reached(slot_reader(layer))[0]
    return {p for p, t in found.items() if t.numel() and t.untyped_storage().data_ptr() in in_place}


def nothing(layer: Any) -> None:
    pass


def run(case: Case, index: int, plant: Plant = nothing) -> Result:
    """Try a case. plant: a change to each rank's processed layer, see plants.py."""
    result = Result(case.name)
    claims_cuda.claim(case.capability, is_cpu=case.is_cpu)
    try:
        with forced(case):
            whole = build(case, index)
            checkpoint = make_checkpoint(whole)
            load(whole, checkpoint)
            process(whole)
    except Exception as error:
        result.not_built = f"{type(error).__name__}: {error}".split("\n")[0]
        return result
    result.kernel = type(whole.quant_method.moe_kernel.fused_experts).__name__
    with forced(case):
        try:
            layers = rank_layers(case, index + 1, checkpoint, plant)
            share_and_compare(layers, whole, result)
        except ConfigError as error:
            result.refused = str(error).partition(": ")[2]
    return result


def share_and_compare(layers: list[Any], whole: Any, result: Result) -> None:
    if names := unlike(layers):
        result.refused = f"dwdp ranks 0 and 1 differ in replicated: {', '.join(sorted(names))}"
        return
    result.shared = share(layers)
    found = set()
    for layer in layers:
        found |= differences(layer, whole)
        found |= {f"slot: {path} reads in place" for path in check_slot(layer)}
        found |= {f"slot: {path}" for path in differences(slot_reader(layer), whole)}
    found = {path for path in found if path.removeprefix("slot: ") not in UNUSED}
    if found and all(same_scales(layer, whole) for layer in layers):
        result.has_other_bits = True
        found = {path for path in found if not path.endswith(TWO_FACTORS)}
    result.different = sorted(found)


def same_scales(layer: Any, whole: Any) -> bool:
    """Whether two layers have the same products of block scales and global scales.

    Marlin's NVFP4 weights have both. vLLM multiplies one by a power of two, which depends on the
    experts that it processes, and divides the other.
    """
    of_marlin = "MarlinExperts" in type(whole.quant_method.moe_kernel.fused_experts).__name__
    if not of_marlin or not hasattr(whole, "w13_weight_scale_2"):
        return False
    return all(torch.equal(scales(layer, stem), scales(whole, stem)) for stem in ("w13", "w2"))


def scales(layer: Any, stem: str) -> torch.Tensor:
    bits = getattr(layer, f"{stem}_weight_scale").detach().clone().contiguous().view(torch.uint8)
    blocks = (bits.to(torch.int16) << 7).view(torch.float16).float()  # 5 bits exponent, 3 mantissa
    return blocks * getattr(layer, f"{stem}_weight_scale_2").detach().float().view(-1, 1, 1)


def slot_reader(layer: Any) -> Any:
    return layer._readers[FetchMode.PREFETCH]


@contextlib.contextmanager
def forced(case: Case) -> Iterator[None]:
    """Let vLLM choose the case's kernel, wherever it has imported the function that chooses."""
    undo = []
    try:
        choice = case.family.choice(case.backend)
    except KeyError:
        raise NotImplementedError(f"this vLLM has no kernel {case.backend}") from None
    replaced = [
        (module, case.family.select, lambda *_, **__: choice)
        for name, module in list(sys.modules.items())
        if name.startswith("vllm") and case.family.select in vars(module)
    ]
    for owner, name, value in [*replaced, *case.patches()]:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        initialize_model_parallel()
        yield


def compared(patterns: list[str]) -> Iterator[Result]:
    for index, case in enumerate(all_cases()):
        if not patterns or any(re.search(pattern, case.name) for pattern in patterns):
            yield run(case, 10 * index)


def planted() -> Iterator[Result]:
    """Results by the names of the planted mistakes."""
    cases = {case.name: case for case in all_cases()}
    for index, (plant, name) in enumerate(plants.PLANTS.items()):
        result = run(cases[name], 10 * index, plant)
        yield dataclasses.replace(result, case=plant.__name__)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("patterns", nargs="*", help="of the names of cases to run")
    parser.add_argument("--planted", action="store_true", help="plant mistakes, see plants.py")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--page", type=Path, help="page whose table to replace, docs/formats.md")
    given = parser.parse_args()
    note_arguments()
    results = []
    with one_process():
        for result in planted() if given.planted else compared(given.patterns):
            results.append(result)
            print(f"{result.case}: {result.verdict}", flush=True)
    found = [dataclasses.asdict(result) | {"verdict": result.verdict} for result in results]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    if given.page:
        given.page.write_text(table.replace(given.page.read_text(), table.lines(found)))


if __name__ == "__main__":
    main()
