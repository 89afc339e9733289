# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Embeddings, scores and classes of two ranks equal those of stock vLLM to the last bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.whole

CHILD = Path(__file__).with_name("pooling_child.py")
LABELS = 3


@pytest.fixture
def classifier(demo_model, tmp_path):
    """The demo model with a head that tells classes apart."""
    folder = tmp_path / "model"
    shutil.copytree(demo_model, folder)
    config = json.loads((folder / "config.json").read_text())
    labels = {"num_labels": LABELS, "id2label": {str(i): f"class {i}" for i in range(LABELS)}}
    (folder / "config.json").write_text(json.dumps(config | labels))
    (file,) = folder.glob("*.safetensors")
    torch.manual_seed(0)
    head = torch.randn(LABELS, config["hidden_size"]).to(torch.bfloat16)
    save_file(load_file(file) | {"score.weight": head}, file)
    return folder


def run(model, convert, ranks, folder):
    out = folder / f"{convert}-{ranks}.json"
    done = subprocess.run(
        [sys.executable, CHILD, model, convert, str(ranks), out],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("convert", ["embed", "classify"])
def test_outputs_of_two_ranks_equal_stock(demo_model, classifier, convert, tmp_path):
    model = classifier if convert == "classify" else demo_model
    stock, found = (run(model, convert, ranks, tmp_path) for ranks in (0, 2))
    stats = found.pop("stats")
    assert all(any(counts["forwards"]) for counts in stats), "both ranks worked"
    assert found == stock
    for kind, outputs in stock.items():
        assert len({json.dumps(output) for output in outputs}) > len(outputs) // 2, kind
