# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Refuses calls that would free memory of a rank, before the engine does anything for them.

On such a call vLLM's engine ends all requests and pauses the scheduler. Only then it calls the
executor, and if the executor refuses, the scheduler stays paused. vLLM offers no earlier place to
refuse, so an executor of dwdp wraps these methods of the engine, in the engine's process.
"""

import functools
from collections.abc import Callable
from typing import Any

from vllm.v1.engine.core import EngineCore

from vllm_dwdp.engine.moe.read_only import refuse_call

FREEING = ("sleep", "release_kv_cache_memory")
"""The engine's methods that free memory; vLLM 0.30 has no `release_kv_cache_memory`."""


def refuse_before_pausing(executor_class: type) -> None:
    """Have engines with an executor of this class refuse these calls; once is enough."""
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
