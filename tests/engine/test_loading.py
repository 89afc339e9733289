# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank loads exactly the rows that stock vLLM has for its experts, and reads little beside them.

Whatever a checkpoint names its experts and however it packs them. What isn't whole is refused.
"""

import re
import shutil
from functools import partial

import pytest
import torch
from model_loading import load_rank, load_stock
from moe_checkpoints import (
    FAMILIES,
    NUM_EXPERTS,
    change,
    write_ernie_vl,
    write_family,
    write_fused_demo,
)
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.models.ernie45_vl_moe import Ernie4_5_VLMoeForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

from vllm_dwdp.engine.loader import DwdpModelLoader

pytestmark = pytest.mark.usefixtures("one_process_group")

NUM_RANKS = 2
LOADED_BY_VLLM = [
    *((family, False) for family in FAMILIES),
    *((family, True) for family in ("qwen3_moe", "granitemoe")),
]
"""Families as first published and, where vLLM takes it, as Transformers holds them in memory."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Write a checkpoint once, to be left as it is."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(family, is_fused):
        path = folder / f"{family}-{is_fused}"
        return path if path.exists() else write_family(path, family, is_fused=is_fused)

    return write


def same_bits(one, other):
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def assert_ranks_hold_what_stock_holds(folder, **options):
    """Returns what the ranks loaded."""
    stock = load_stock(folder, **options)
    assert stock and all(t[:].isfinite().all() for layer in stock.values() for t in layer.values())
    ranks = [load_rank(folder, rank, NUM_RANKS, **options) for rank in range(NUM_RANKS)]
    for rank in ranks:
        for layer, tensors in stock.items():
            local = rank.local_experts[layer]
            for name, tensor in tensors.items():
                rows = slice(local.start, local.stop)
                assert same_bits(rank.experts[layer][name], tensor[rows]), (layer, name)
    return ranks


def num_expert_bytes(rank):
    return sum(t.nbytes for layer in rank.experts.values() for t in layer.values())


@pytest.mark.parametrize(("family", "is_fused"), LOADED_BY_VLLM)
def test_ranks_hold_stocks_rows_and_read_no_others(checkpoint, family, is_fused):
    ranks = assert_ranks_hold_what_stock_holds(checkpoint(family, is_fused))
    for rank in ranks:
        assert rank.read_count.num_expert_bytes == num_expert_bytes(rank)
    assert len({rank.read_count.num_dense_bytes for rank in ranks}) == 1


def test_experts_whose_number_in_the_checkpoint_is_not_the_layers_are_loaded(tmp_path):
    folder = write_ernie_vl(tmp_path / "model")
    ranks = assert_ranks_hold_what_stock_holds(folder, model_class=Ernie4_5_VLMoeForCausalLM)
    for rank in ranks:
        assert any("vision_experts" in layer for layer in rank.experts)
        assert rank.read_count.num_expert_bytes == num_expert_bytes(rank)


class FileReads(TorchDispatchMode):
    """Counts the bytes of watched tensors that PyTorch's operators read; views read none."""

    def __init__(self):
        super().__init__()
        self.kept = []
        self.num_bytes = 0

    def watch(self, tensor):
        self.kept.append(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            inputs = [
                arg for arg in args if isinstance(arg, torch.Tensor) and self._is_watched(arg)
            ]
            is_part = func.overloadpacket is torch.ops.aten.index
            self.num_bytes += sum((result if is_part else arg).nbytes for arg in inputs)
        return result

    def _is_watched(self, tensor):
        ends = ((t.data_ptr(), t.data_ptr() + t.nbytes) for t in self.kept)
        return any(start <= tensor.data_ptr() < end for start, end in ends)


class Watched(DwdpModelLoader):
    """Hands tensors of experts to `reads`; of others it notes the names."""

    reads: FileReads
    names: list[str]

    def get_all_weights(self, model_config, model):
        for name, tensor in super().get_all_weights(model_config, model):
            self.names.append(name)
            if tensor.dim() == 3 or ".experts." in name:
                self.reads.watch(tensor)
            yield name, tensor


@pytest.mark.parametrize(("family", "is_fused"), LOADED_BY_VLLM)
def test_a_rank_reads_nothing_of_other_ranks_rows(checkpoint, family, is_fused):
    Watched.reads, Watched.names = FileReads(), []
    with Watched.reads:
        rank = load_rank(checkpoint(family, is_fused), 1, NUM_RANKS, loader_class=Watched)
    assert Watched.reads.num_bytes == rank.read_count.num_expert_bytes == num_expert_bytes(rank)
    numbers = {int(n) for name in Watched.names for n in re.findall(r"\.experts\.(\d+)\.", name)}
    assert numbers <= {e for experts in rank.local_experts.values() for e in experts}


class HasAnAdapterOfExperts(Qwen3MoeForCausalLM):
    """Its adapter's experts are modules of their own, not rows of a MoE layer."""

    def __init__(self, *, vllm_config, prefix=""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.adapter = torch.nn.Module()
        linears = [torch.nn.Linear(8, 8, bias=False) for _ in range(NUM_EXPERTS)]
        self.adapter.experts = torch.nn.ModuleList(linears)


def test_experts_of_modules_that_are_no_moe_layers_are_loaded_by_every_rank(tmp_path):
    def add_adapter(tensors):
        names = (f"adapter.experts.{e}.weight" for e in range(NUM_EXPERTS))
        tensors.update({name: torch.randn(8, 8).bfloat16() for name in names})

    folder = change(write_family(tmp_path / "model", "qwen3_moe", is_fused=False), add_adapter)
    assert_ranks_hold_what_stock_holds(folder, model_class=HasAnAdapterOfExperts)


@pytest.mark.parametrize("strategy", ["eager", "prefetch"])
def test_a_strategy_that_reads_whole_files_is_counted_so(checkpoint, strategy):
    folder = checkpoint("qwen3_moe", True)
    ranks = assert_ranks_hold_what_stock_holds(folder, safetensors_load_strategy=strategy)
    total = sum(num_expert_bytes(rank) for rank in ranks)
    assert [rank.read_count.num_expert_bytes for rank in ranks] == [total] * NUM_RANKS


def test_bin_files_are_counted_whole(checkpoint, tmp_path):
    source = checkpoint("qwen3_moe", False)
    (file,) = source.glob("*.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    ranks = assert_ranks_hold_what_stock_holds(tmp_path)
    total = sum(num_expert_bytes(rank) for rank in ranks)
    assert [rank.read_count.num_expert_bytes for rank in ranks] == [total] * NUM_RANKS


def drop(pattern, tensors):
    names = [name for name in tensors if re.search(pattern, name)]
    assert names
    for name in names:
        del tensors[name]


def resize(pattern, new, tensors):
    names = [name for name in tensors if re.search(pattern, name)]
    assert names
    for name in names:
        tensors[name] = new(tensors[name])


def one_row_more(tensor):
    return torch.cat([tensor, tensor[:1]])


INCOMPLETE = r"expected {} of experts \[.*\] in the checkpoint, \[{}\] are missing; use a complete"
ROWS = rf"expected {NUM_EXPERTS} experts in the checkpoint's '.*{{}}', got {{}} in .*use a complete"
DAMAGE = {
    "an expert is missing": (
        *("qwen3_moe", False, partial(drop, r"layers\.1\.mlp\.experts\.5\.")),
        INCOMPLETE.format("w1", 5),
    ),
    "a projection is missing": (
        *("qwen3_moe", False, partial(drop, r"layers\.1\.mlp\.experts\.2\.up_proj")),
        INCOMPLETE.format("w3", 2),
    ),
    "a matrix of an expert is too small": (
        *("qwen3_moe", False, partial(resize, r"experts\.2\.up_proj", lambda t: t[:24])),
        r"expected w3 of an expert as \[48, 64\] .*, the checkpoint has \[24, 64\]; use a check",
    ),
    "the fused down projections are missing": (
        *("qwen3_moe", True, partial(drop, r"layers\.1\.mlp\.experts\.down_proj")),
        INCOMPLETE.format("w2", "0, 1, 2, 3"),
    ),
    "the fused gate and up projections are missing": (
        *("qwen3_moe", True, partial(drop, r"layers\.1\.mlp\.experts\.gate_up_proj")),
        INCOMPLETE.format("w1", "0, 1, 2, 3"),
    ),
    "a fused tensor lacks the last expert": (
        *("qwen3_moe", True, partial(resize, r"1\.mlp\.experts\.down_proj", lambda t: t[:-1])),
        ROWS.format("down_proj", NUM_EXPERTS - 1),
    ),
    "a fused tensor has an expert too many": (
        *("qwen3_moe", True, partial(resize, r"1\.mlp\.experts\.down_proj", one_row_more)),
        ROWS.format("down_proj", NUM_EXPERTS + 1),
    ),
    "a fused tensor has the gates only": (
        *("qwen3_moe", True, partial(resize, r"experts\.gate_up_proj", lambda t: t[:, :48])),
        r"expected w1 of an expert as \[48, 64\] .*, the checkpoint has \[24, 64\]; use a check",
    ),
    "a fused tensor is too narrow": (
        *("granitemoe", False, partial(resize, r"input_linear", lambda t: t[..., :32])),
        r"expected w1 of an expert as \[48, 64\] .*, the checkpoint has \[48, 32\]; use a check",
    ),
    "a fused tensor without a name of experts lacks one": (
        *("granitemoe", False, partial(resize, r"1\..*output_linear", lambda t: t[:-1])),
        ROWS.format("output_linear.weight", NUM_EXPERTS - 1),
    ),
    "a transposed fused tensor lacks the last expert": (
        *("llama4_text", True, partial(resize, r"1\..*experts\.down_proj", lambda t: t[:-1])),
        ROWS.format("down_proj", NUM_EXPERTS - 1),
    ),
    "a transposed fused tensor has an expert too many": (
        *("llama4_text", True, partial(resize, r"1\..*experts\.gate_up", one_row_more)),
        ROWS.format("gate_up_proj", NUM_EXPERTS + 1),
    ),
    "a transposed fused tensor is too small": (
        *("llama4_text", True, partial(resize, r"1\..*experts\.down_proj", lambda t: t[:, :24])),
        r"expected w2 of an expert as \[64, 48\] .*, the checkpoint has \[64, 24\]; use a check",
    ),
    "the transposed fused down projections are missing": (
        *("llama4_text", True, partial(drop, r"layers\.1\..*experts\.down_proj")),
        INCOMPLETE.format("w2", "0, 1, 2, 3"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_is_refused(tmp_path, damage):
    """By one rank: that ends the others."""
    family, is_fused, changed, sentence = DAMAGE[damage]
    folder = change(write_family(tmp_path / "model", family, is_fused=is_fused), changed)
    refusals = []
    for rank in range(NUM_RANKS):
        try:
            load_rank(folder, rank, NUM_RANKS)
        except ValueError as error:
            refusals.append(str(error))
    assert any(re.search(sentence, refusal) for refusal in refusals), refusals


class LoadsExpertsItself(Qwen3MoeForCausalLM):
    """As some models do: it writes to the memory of its experts, and tells nobody."""

    def load_weights(self, weights):
        rest = [(name, tensor.clone()) for name, tensor in weights if ".experts." not in name]
        return super().load_weights(rest)


def test_a_model_that_loads_experts_past_vllms_weight_loader_is_refused(checkpoint):
    with pytest.raises(ValueError, match="or LoadsExpertsItself loads experts in a way of its own"):
        load_rank(checkpoint("qwen3_moe", False), 0, NUM_RANKS, model_class=LoadsExpertsItself)


def test_tokens_on_a_fused_checkpoint_equal_stock_vllms(generate, stock_eager, tmp_path):
    """Stock vLLM's are those of the demo model, whose experts are the same, one by one."""
    ranks = generate("--eager", model=write_fused_demo(tmp_path / "model"))
    assert ranks["outputs"] == stock_eager["outputs"]
    read = [stats["expert_bytes_read"] for stats in ranks["stats"]]
    assert read == [stats["expert_bytes_owned"] for stats in ranks["stats"]]


def test_tokens_of_a_llama_4_equal_stock_vllms(generate, checkpoint):
    model = checkpoint("llama4_text", True)
    ranks, stock = generate("--eager", model=model), generate("--eager", "--stock", model=model)
    assert ranks["outputs"] == stock["outputs"]
    assert len({tuple(output["tokens"]) for output in stock["outputs"]}) > 1
    assert sum(stats["expert_bytes_read"] for stats in ranks["stats"]) > 0
