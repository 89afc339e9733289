# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A rank loads its experts as stock vLLM does, and reads no others from the checkpoint.

The checkpoints name and pack their experts in different ways.
"""

import logging
import shutil

import pytest
import torch
from model_loading import load_draft, load_rank, load_stock
from moe_checkpoints import (
    FAMILIES,
    NUM_EXPERTS,
    change,
    write_ernie_vl,
    write_family,
    write_fused_demo,
)
from safetensors.torch import load_file
from vllm.model_executor.models.ernie45_vl_moe import Ernie4_5_VLMoeForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

from vllm_dwdp.engine.moe import loader

pytestmark = [pytest.mark.usefixtures("one_process_group"), pytest.mark.whole]

NUM_RANKS = 2
LOADED_BY_VLLM = [
    *((family, False) for family in FAMILIES),
    *((family, True) for family in ("qwen3_moe", "granitemoe")),
]
"""(family, is_fused) of all forms of checkpoints that vLLM loads; see `write_family`."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Writes a checkpoint once for all tests, which must not change it."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(family, is_fused):
        path = folder / f"{family}-{is_fused}"
        return path if path.exists() else write_family(path, family, is_fused=is_fused)

    return write


def test_every_tensor_that_is_loaded_is_a_step(checkpoint):
    rank = load_rank(checkpoint("qwen3_moe", False), 0, NUM_RANKS)
    assert [name for name in rank.steps if ".experts." in name]
    assert rank.steps == [f"past {name}" for name in rank.names]


def same_bits(one, other):
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def assert_ranks_hold_what_stock_holds(folder, **options):
    """Compare the ranks' experts with those of stock vLLM; returns what the ranks loaded."""
    stock = load_stock(folder, **options)
    assert stock and all(t.isfinite().all() for layer in stock.values() for t in layer.values())
    ranks = [load_rank(folder, rank, NUM_RANKS, **options) for rank in range(NUM_RANKS)]
    for rank in ranks:
        for layer, tensors in stock.items():
            local = rank.local_experts[layer]
            for name, tensor in tensors.items():
                rows = slice(local.start, local.stop)
                assert same_bits(rank.experts[layer][name], tensor[rows]), (layer, name)
    return ranks


@pytest.mark.parametrize(("family", "is_fused"), LOADED_BY_VLLM)
def test_ranks_hold_stocks_rows_and_touch_no_others(checkpoint, family, is_fused):
    ranks = assert_ranks_hold_what_stock_holds(checkpoint(family, is_fused))
    for rank in ranks:
        read = rank.read_count.num_expert_bytes
        assert read == rank.num_touched_bytes == rank.num_expert_bytes
        assert rank.opened <= {e for experts in rank.local_experts.values() for e in experts}
    assert len({rank.read_count.num_dense_bytes for rank in ranks}) == 1


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_draft_model_has_all_experts_on_every_rank(checkpoint, family, monkeypatch, caplog):
    monkeypatch.setattr(loader, "logger", logging.getLogger("heard"))  # vLLM sets up its own again
    caplog.set_level("INFO", "heard")
    folder = checkpoint(family, False)
    stock, draft = load_stock(folder), load_draft(folder, 1, NUM_RANKS)
    assert draft.keys() == stock.keys()
    assert "every rank has all experts of the draft model" in caplog.text
    for layer, tensors in stock.items():
        for name, tensor in tensors.items():
            assert same_bits(draft[layer][name], tensor), (layer, name)


def test_experts_whose_number_in_the_checkpoint_is_not_the_layers_are_loaded(tmp_path):
    folder = write_ernie_vl(tmp_path / "model")
    ranks = assert_ranks_hold_what_stock_holds(folder, model_class=Ernie4_5_VLMoeForCausalLM)
    for rank in ranks:
        assert any("vision_experts" in layer for layer in rank.experts)
        assert rank.num_touched_bytes == rank.num_expert_bytes


class HasAnAdapterOfExperts(Qwen3MoeForCausalLM):
    """A model with an adapter whose experts are modules of their own, not rows of a MoE layer."""

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


@pytest.mark.parametrize(
    "options",
    [
        {"safetensors_load_strategy": "eager"},
        {"safetensors_load_strategy": "prefetch"},
        {"model_loader_extra_config": {"enable_multithread_load": True}},
    ],
    ids=["eager", "prefetch", "threads"],
)
def test_an_option_that_reads_whole_files_is_counted_so(checkpoint, options):
    folder = checkpoint("qwen3_moe", True)
    ranks = assert_ranks_hold_what_stock_holds(folder, **options)
    total = sum(rank.num_expert_bytes for rank in ranks)
    assert [rank.read_count.num_expert_bytes for rank in ranks] == [total] * NUM_RANKS


def test_bin_files_are_counted_whole(checkpoint, tmp_path):
    source = checkpoint("qwen3_moe", False)
    (file,) = source.glob("*.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    torch.save(load_file(file), tmp_path / "pytorch_model.bin")
    ranks = assert_ranks_hold_what_stock_holds(tmp_path)
    total = sum(rank.num_expert_bytes for rank in ranks)
    assert [rank.read_count.num_expert_bytes for rank in ranks] == [total] * NUM_RANKS


def test_tokens_on_a_fused_checkpoint_equal_stock_vllms(generate, stock_eager, tmp_path):
    """Stock vLLM runs the demo model, which has the same experts, each in tensors of its own."""
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


def test_tokens_of_the_transformers_backend_equal_stock_vllms(generate):
    """Its MoE layers are of a class of their own, which finds experts by other names, too."""
    same = "--eager", "--options", '{"model_impl": "transformers"}'
    ranks, stock = generate(*same), generate("--stock", *same)
    assert "Using Transformers modeling backend" in ranks["log"]
    assert ranks["outputs"] == stock["outputs"]
    read = [stats["expert_bytes_read"] for stats in ranks["stats"]]
    assert read == [stats["expert_bytes_owned"] for stats in ranks["stats"]]
