# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Writes a small checkpoint of a model family with random weights, by Transformers' own classes."""

import json
import shutil
from pathlib import Path

import torch
from families import Family
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

DEMO_MODEL = Path(__file__).resolve().parents[2] / "examples" / "demo_model"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
PREDICTION_NORMS = ("enorm", "hnorm", "shared_head.norm")
NUM_LIKELY = 24
MATRIX_STD, VECTOR_STD = 0.1, 0.05
"""Large enough that routers tell tokens apart, and that greedy tokens differ."""


def write_checkpoint(folder: Path, family: Family, num_experts: int) -> str:
    """Write the checkpoint, the same one in every run; returns the name of its architecture."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = AutoConfig.for_model(family.model_type, **family.config(num_experts))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    randomise(model)
    model.save_pretrained(folder)
    rename(folder / "model.safetensors", *family.renamed)
    if family.predicts:
        add_prediction_layer(folder, config)
    for name in TOKENIZER:
        shutil.copy(DEMO_MODEL / name, folder)
    return type(model).__name__


def randomise(model: PreTrainedModel) -> None:
    """Draw matrices and biases again, those in buffers too; norms keep their values.

    A router's e_score_correction_bias is 0 in a new model, and a buffer in most families.
    """
    for name, tensor in model.state_dict().items():
        if tensor.dim() > 1:
            tensor.normal_(0, MATRIX_STD)
        elif name.endswith("bias"):
            tensor.normal_(0, VECTOR_STD)


def rename(file: Path, old: str, new: str) -> None:
    """Replace a part of the names of all tensors."""
    save_file({name.replace(old, new): t for name, t in load_file(file).items()}, file)


def add_prediction_layer(folder: Path, config: PretrainedConfig) -> None:
    """Add a layer that predicts the token after the next, as DeepSeek-V3's checkpoints have it.

    It is a copy of the last layer, behind a projection of a hidden state and an embedding.
    Transformers drops the field of the configuration that tells of it.
    """
    file, hidden = folder / "model.safetensors", config.hidden_size
    tensors, last = load_file(file), f"model.layers.{config.num_hidden_layers - 1}."
    tensors["lm_head.weight"][NUM_LIKELY:] = 0  # of few tokens some are drafted right
    added = f"model.layers.{config.num_hidden_layers}."
    copied = {added + n.removeprefix(last): t for n, t in tensors.items() if n.startswith(last)}
    norms = {f"{added}{name}.weight": torch.ones(hidden) for name in PREDICTION_NORMS}
    both = torch.empty(hidden, 2 * hidden).normal_(0, MATRIX_STD)
    shared = {
        f"{added}embed_tokens.weight": tensors["model.embed_tokens.weight"],
        f"{added}shared_head.head.weight": tensors["lm_head.weight"],
    }
    made = norms | {f"{added}eh_proj.weight": both}
    made = {name: tensor.to(torch.bfloat16) for name, tensor in made.items()}
    save_file({n: t.clone() for n, t in (tensors | copied | shared | made).items()}, file)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 1}))
