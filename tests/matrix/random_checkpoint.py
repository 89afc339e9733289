# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Writes a small checkpoint of a model family with random weights, by Transformers' own classes."""

import shutil
from pathlib import Path

import torch
from families import Family
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

DEMO_MODEL = Path(__file__).resolve().parents[2] / "examples" / "demo_model"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
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
