# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Calls that would free memory of a rank are refused before the engine does anything for them.

vLLM ends all requests and pauses the scheduler first, asks the executor then, and leaves the
scheduler paused when that refuses. It offers no earlier place to refuse, so these methods of the
engine are wrapped: in the engine's own process, once it has an executor of dwdp.
"""

import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.engine.core import EngineCore

from vllm_dwdp.engine.moe.read_only import refuse_call

FREEING = ("sleep", "release_kv_cache_memory")
"""What frees memory; `release_kv_cache_memory` is not in vLLM 0.30."""


def refuse_before_pausing(executor_class: type) -> None:
    """Wrap the engine's methods for executors of this class; once in a process."""
    for name in FREEING:
        stock = getattr(EngineCore, name, None)
        if stock is not None and not hasattr(stock, "refuses_for"):
            setattr(EngineCore, name, _refusing(name, stock, executor_class))


def _refusing(name: str, stock: Callable[..., Any], executor_class: type) -> Callable[..., Any]:
    @functools.wraps(stock)
    def call(engine: Any, *args: Any, **kwargs: Any) -> Any:
        only_pauses = name == "sleep" and (args[:1] == (0,) or kwargs.get("level") == 0)
        if isinstance(engine.model_executor, executor_class) and not only_pauses:
            refuse_call(name)
        return stock(engine, *args, **kwargs)

    call.refuses_for = executor_class  # type: ignore[attr-defined]
    return call
