# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets a server with internal load balancing answer for all of its ranks.

vLLM's `collective_rpc` reaches the workers of all engines, but returns the answers of the first
engine only. For methods of dwdp's own workers, whose names begin with `dwdp_`, it returns those of
all engines, in the order of their ranks. Other methods are left to vLLM.
"""

import asyncio
import functools
from typing import Any

from vllm.v1.engine.core_client import DPLBAsyncMPClient

OWN = "dwdp_"


def answer_for_all() -> None:
    """Have the clients of this process, a front-end, do so; once is enough."""
    stock = DPLBAsyncMPClient.collective_rpc_async
    if getattr(stock, "asks_all", False):
        return

    @functools.wraps(stock)
    async def collective_rpc_async(
        client: Any,
        method: Any,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        if not (isinstance(method, str) and method.startswith(OWN)):
            return list(await stock(client, method, timeout, args, kwargs))
        call = ("collective_rpc", method, timeout, args, kwargs)
        engines = client.core_engines
        asked = [client._call_utility_async(*call, engine=engine) for engine in engines]
        return [answer for answers in await asyncio.gather(*asked) for answer in answers]

    collective_rpc_async.asks_all = True  # type: ignore[attr-defined]
    DPLBAsyncMPClient.collective_rpc_async = collective_rpc_async
