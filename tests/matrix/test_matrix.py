# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two families on two ranks give what stock vLLM gives, and the matrix sees it if they don't."""

import copy
import math

import pytest
from log_errors import cause
from verdict import EQUAL, Job, judged, run_family

pytestmark = pytest.mark.whole

EXPECTED = [
    {"tokens": [5, 7], "logprobs": [{"5": -0.5, "7": -1.0}, {"7": -0.5, "5": -1.0}]},
    {"tokens": [9, 9, 4], "logprobs": [{"9": -0.25}, {"9": -0.5}, {"4": -2.0}]},
]
COUNTS = {"forwards": [3, 3], "bytes_fetched": {"prefetch": [0, 0], "selective": [0, 64]}}
REFUSED = """
(Worker) ERROR vllm_dwdp.config.ConfigError: dwdp found no MoE layer; drop the option.
RuntimeError: the engine ended
"""
STOCK_FAILED = """
(Worker pid=5) ERROR 11-27 09:10:12 [executor.py:7] Traceback (most recent call last):
(Worker pid=5) ERROR 11-27 09:10:12 [executor.py:7] AssertionError
(EngineCore pid=4) Exception: WorkerProc initialization failed due to an exception.
RuntimeError: Engine core initialization failed. See root cause above.
"""


def outcome(outputs, *, counts=COUNTS, fetch="selective", accepted=3):
    found = {"outputs": outputs, "accepted": accepted, "stats": [counts]}
    return judged(found, {"outputs": EXPECTED, "accepted": 3}, "", fetch)


@pytest.mark.parametrize("family", ["granitemoe", "deepseek_v3"])
def test_ranks_equal_stock_vllm(family, tmp_path):
    """Granite's checkpoints hold all experts of a layer in one tensor, DeepSeek's one by one."""
    assert run_family(family, Job(experts=7), tmp_path).outcome == EQUAL


def test_equal_outputs_are_equal():
    assert outcome(copy.deepcopy(EXPECTED)) == EQUAL


def test_drafts_that_are_accepted_less_often_are_seen():
    seen = outcome(copy.deepcopy(EXPECTED), accepted=2)
    assert seen == "DIFFERENT: 2 drafts accepted, expected 3"


def test_token_that_differs_is_seen():
    found = copy.deepcopy(EXPECTED)
    found[1]["tokens"][1] = 8
    assert outcome(found) == "DIFFERENT: prompt 1, token 1: [8, 4], expected [9, 4]"


def test_logprob_that_differs_in_its_last_bit_is_seen():
    found = copy.deepcopy(EXPECTED)
    found[0]["logprobs"][1]["5"] = math.nextafter(-1.0, 0)
    assert outcome(found).startswith("DIFFERENT: prompt 0, log-probabilities of token 1: {")


@pytest.mark.parametrize("found", [EXPECTED[:1], [EXPECTED[0], EXPECTED[1] | {"tokens": [9]}]])
def test_outputs_that_are_missing_are_seen(found):
    assert outcome(found).startswith("DIFFERENT: ")


def test_ranks_that_read_no_peer_show_nothing():
    idle = COUNTS | {"forwards": [0, 0]}
    assert outcome(EXPECTED, counts=idle) == "ERROR: rank 0 ran no MoE layer"
    assert outcome(EXPECTED, fetch="prefetch") == "ERROR: rank 0 copied no expert"
    assert outcome(EXPECTED, fetch="direct") == EQUAL


def test_refusal_is_told_from_other_errors():
    found = {"error": "RankDied: the engine ended"}
    assert judged(found, {}, REFUSED, "auto") == (
        "refused: dwdp found no MoE layer; drop the option."
    )
    assert judged(found, {}, "Value error, no data parallelism for dense models.", "auto") == (
        "ERROR: RankDied: the engine ended"
    )
    assert judged(found, {}, "Value error, the engine ended [type=x]", "auto") == (
        "refused: the engine ended"
    )
    assert judged(found, {}, "Segmentation fault", "auto") == "ERROR: RankDied: the engine ended"


def test_error_of_stock_vllm_is_the_one_that_others_follow_from():
    assert cause(STOCK_FAILED) == "AssertionError"
    assert cause("INFO all is well") is None
