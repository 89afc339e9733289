# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""dwdp limits the time without progress in a start, and raises vLLM's limit for the whole start."""

import logging
import os
from pathlib import Path

import pytest
import torch
from layer_group import NUM_LAYERS, Group, Model, make_checkpoint
from support.log_lines import log_lines
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine import core_client

from vllm_dwdp.engine import compat

pytestmark = pytest.mark.whole

MODEL = str(Path(__file__).resolve().parents[3] / "examples" / "demo_model")
LONGEST_S = 100 * (6 + 1)
"""timeout_s for each of the demo model's six layers, and once more."""


def configure(timeout_s=100):
    """Configure dwdp as a front-end does; returns the log lines about vLLM's limit."""
    with log_lines(logging.INFO) as lines:
        EngineArgs(
            model=MODEL,
            distributed_executor_backend="dwdp",
            additional_config={"dwdp": {"timeout_s": timeout_s}},
            data_parallel_size=2,
            max_model_len=256,
        ).create_engine_config()
    return [line for line in lines if compat.READY_TIMEOUT in line]


@pytest.fixture(scope="module")
def logging_is_set_up():
    """Configure once: vLLM then sets up the loggers of the process, which drops our handlers."""
    configure()


@pytest.fixture
def limit(monkeypatch, logging_is_set_up):
    """Resets vLLM's limit in this process, as if no user and no job had set it."""
    monkeypatch.setenv(compat.READY_TIMEOUT, "600")
    monkeypatch.setattr(compat, "_raised_to", "600")
    monkeypatch.setattr(core_client, compat.READY_TIMEOUT, 600)


@pytest.mark.usefixtures("limit")
def test_vllms_limit_outlasts_a_start_that_gets_further():
    (line,) = configure()
    assert os.environ[compat.READY_TIMEOUT] == str(LONGEST_S)
    assert core_client.VLLM_ENGINE_READY_TIMEOUT_S == LONGEST_S, "it was imported before"
    assert line.startswith(f"{compat.READY_TIMEOUT} is {LONGEST_S} for this start")


@pytest.mark.usefixtures("limit")
def test_short_time_without_progress_doesnt_lower_vllms_limit():
    configure(timeout_s=5)
    assert os.environ[compat.READY_TIMEOUT] == "600"


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize(("given", "num_lines"), [(LONGEST_S - 1, 1), (LONGEST_S, 0)])
def test_limit_that_the_user_set_stays_and_one_too_low_is_named(monkeypatch, given, num_lines):
    monkeypatch.setenv(compat.READY_TIMEOUT, str(given))
    lines = configure()
    assert os.environ[compat.READY_TIMEOUT] == str(given)
    assert core_client.VLLM_ENGINE_READY_TIMEOUT_S == 600
    assert len(lines) == num_lines
    assert all(f"Set it to {LONGEST_S} or leave it out" in line for line in lines)


@pytest.mark.usefixtures("limit")
def test_limit_of_an_earlier_job_of_this_process_is_not_taken_for_the_users(monkeypatch):
    configure()
    assert compat.read_ready_timeout() is None


@pytest.mark.usefixtures("one_process_group")
def test_every_adopted_layer_is_a_step():
    shape = 6, torch.bfloat16, False
    group = Group(2, None, make_checkpoint(*shape), lambda: Model(*shape))
    names = [f"layers.{idx}.experts" for idx in range(NUM_LAYERS)]
    assert len(group.adopted) == 2 * NUM_LAYERS
    assert all(name in found for name, found in zip(names * 2, group.adopted, strict=True))
