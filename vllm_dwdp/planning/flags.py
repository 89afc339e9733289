# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The command that starts what was planned."""

import json
import shlex

from vllm_dwdp.planning.request import Request
from vllm_dwdp.planning.verdict import Answer

MAX_TOKENS_FLAG = "--max-num-batched-tokens"


def recommended_flags(
    request: Request, place: str, *, tokens: int, answer: Answer, copies: bool
) -> str:
    """A `vllm serve` command to paste, on one line.

    place: the model, as the user gave it. tokens: of a step. copies: whether steps copy experts, so
    that prompts should wait until they fill one.
    """
    command = ["vllm", "serve", place, "--data-parallel-size", str(request.dwdp_size)]
    command += ["--distributed-executor-backend", "dwdp", MAX_TOKENS_FLAG, str(tokens)]
    if answer is Answer.PREFILL_ONLY:
        transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}
        if request.hardware.kind == "cpu":
            transfer["kv_buffer_device"] = "cpu"
        command += ["--kv-transfer-config", json.dumps(transfer)]
    options = _dwdp_options(request, prefill_only=answer is Answer.PREFILL_ONLY and copies)
    if options:
        command += ["--additional-config", json.dumps({"dwdp": options})]
    return shlex.join(command)


def _dwdp_options(request: Request, *, prefill_only: bool) -> dict[str, int | str]:
    options: dict[str, int | str] = {}
    if request.num_experts_per_worker is not None:
        options["num_experts_per_worker"] = request.num_experts_per_worker
    if prefill_only:
        options["min_tokens_per_step"] = "auto"
    return options
