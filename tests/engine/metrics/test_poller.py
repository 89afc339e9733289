# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How polling ends: quietly with an engine, and with a warning where an answer fails otherwise."""

import asyncio
import weakref

import pytest

from vllm_dwdp.engine.metrics import poller
from vllm_dwdp.engine.request_path import EngineDeadError


class FailingClient:
    """Stands in for vLLM's client of the engines."""

    engine_ranks_managed = (0,)
    core_engines = (b"engine",)

    def __init__(self, error):
        self._error = error

    async def _call_utility_async(self, method, *, engine):
        raise self._error


@pytest.mark.parametrize(
    ("error", "warnings"),
    [
        (EngineDeadError(), []),
        (
            KeyError("slot_bytes"),
            ["dwdp's metrics end here, since an engine's answer failed: KeyError('slot_bytes')"],
        ),
    ],
)
def test_polling_ends_with_the_first_failure(error, warnings, monkeypatch):
    said = []
    monkeypatch.setattr(poller.logger, "warning", lambda text, *args: said.append(text % args))
    client = FailingClient(error)
    asyncio.run(asyncio.wait_for(poller.poll(weakref.ref(client), "model"), timeout=10))
    assert said == warnings
