# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Asks the engines of a front-end for their metrics every few seconds.

The engines' answers come the way of all answers, so engines may be anywhere: in other processes, on
other hosts, under Ray. Where several API servers share engines, the first one asks.
"""

import asyncio
import functools
import logging
import sys
import weakref
from typing import Any

from vllm_dwdp.engine.metrics.exporter import EngineExporter
from vllm_dwdp.engine.metrics.series import METHOD
from vllm_dwdp.engine.setup.settings import Settings

POLL_S = 5.0
"""An engine answers between two steps, and plans no step meanwhile: some milliseconds."""

logger = logging.getLogger("vllm.dwdp")


def poll_from_front_ends() -> None:
    """Make front-ends that this process starts from now on poll their engines.

    `vllm.LLM` has no such front-end: there `dwdp_stats` has the same figures.
    """
    module = sys.modules.get("vllm.v1.engine.async_llm")
    if module is None or getattr(module.AsyncLLM.__init__, "polls_dwdp", False):
        return
    stock_init = module.AsyncLLM.__init__

    @functools.wraps(stock_init)
    def init(front_end: Any, *args: Any, **kwargs: Any) -> None:
        stock_init(front_end, *args, **kwargs)
        start_polling(front_end)

    init.polls_dwdp = True  # type: ignore[attr-defined]
    module.AsyncLLM.__init__ = init


def start_polling(front_end: Any) -> None:
    """Poll in the running event loop, if this front-end is one that shows metrics of dwdp."""
    client = front_end.engine_core
    is_ours = Settings.load(front_end.vllm_config) is not None
    if not (is_ours and front_end.log_stats) or client.client_index:
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # a front-end in a program without an event loop serves no metrics
        return
    name = front_end.vllm_config.model_config.served_model_name
    front_end.dwdp_polling = loop.create_task(poll(weakref.ref(client), name))


async def poll(client_of: "weakref.ref[Any]", model_name: str) -> None:
    """Ask all engines until the front-end or an engine ends."""
    from vllm_dwdp.engine.request_path import EngineDeadError  # vLLM loads plugins before it

    exporters: dict[int, EngineExporter] = {}
    while (client := client_of()) is not None:
        try:
            engines = zip(client.engine_ranks_managed, client.core_engines, strict=True)
            for engine, identity in engines:
                exporter = exporters.setdefault(engine, EngineExporter(model_name, engine))
                exporter.set(await client._call_utility_async(METHOD, engine=identity))
        except EngineDeadError:  # vLLM reports it
            return
        except Exception as error:
            logger.warning("dwdp's metrics end here, since an engine's answer failed: %r", error)
            return
        del client
        await asyncio.sleep(POLL_S)
