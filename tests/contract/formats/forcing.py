# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets vLLM build a case's MoE layer, with the case's kernel, outside of an engine."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator

from cases import Case
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel


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
