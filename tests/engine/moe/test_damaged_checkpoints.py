# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A checkpoint that doesn't fill the memory of every expert is refused, with the reason."""

import re
from functools import partial

import pytest
import torch
from model_loading import load_rank
from moe_checkpoints import NUM_EXPERTS, change, write_family
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

pytestmark = pytest.mark.usefixtures("one_process_group")

NUM_RANKS = 2


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
    "the down projections of a gpt-oss are missing": (
        *("gpt_oss", False, partial(drop, r"layers\.1\..*experts\.down_proj$")),
        INCOMPLETE.format("w2", "0, 1, 2, 3"),
    ),
    "a weight of a gpt-oss is too small": (
        *("gpt_oss", False, partial(resize, r"1\..*gate_up_proj$", lambda t: t[..., :64])),
        r"expected w1 and w3 of an expert as \[64, 128\] .*, the checkpoint has \[64, 64\]; use a",
    ),
    "the biases of a gpt-oss are missing": (
        *("gpt_oss", False, partial(drop, r"layers\.1\..*down_proj_bias")),
        INCOMPLETE.format("w2_bias", "0, 1, 2, 3"),
    ),
    "a bias of a gpt-oss is too short": (
        *("gpt_oss", False, partial(resize, r"1\..*gate_up_proj_bias", lambda t: t[:, :100])),
        r"expected 128 values in w13_bias of an expert .*, the checkpoint has \[100\]; use a",
    ),
    "a bias of a gpt-oss has an expert too many": (
        *("gpt_oss", False, partial(resize, r"1\..*gate_up_proj_bias", one_row_more)),
        ROWS.format("gate_up_proj_bias", NUM_EXPERTS + 1),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_not_whole_is_refused(tmp_path, damage):
    """One rank must refuse; in a group that ends the other ranks."""
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
    """A model that loads its experts itself, past vLLM's weight loader; here it loads none."""

    def load_weights(self, weights):
        rest = [(name, tensor.clone()) for name, tensor in weights if ".experts." not in name]
        return super().load_weights(rest)


def test_a_model_that_loads_experts_past_vllms_weight_loader_is_refused(tmp_path):
    folder = write_family(tmp_path / "model", "qwen3_moe", is_fused=False)
    with pytest.raises(ValueError, match="or LoadsExpertsItself loads experts in a way of its own"):
        load_rank(folder, 0, NUM_RANKS, model_class=LoadsExpertsItself)
