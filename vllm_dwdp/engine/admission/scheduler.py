# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Holds prompts back until they fill a step, because a step that prefetches costs a fixed time.

A rank copies the experts that it lacks once for a step, however many tokens the step has. So two
small steps take nearly twice as long as one of both. vLLM has `--prefill-schedule-interval`, which
lets ranks in lock-step take prompts in every so many steps while others decode. It doesn't count
tokens, and the ranks of dwdp don't run in lock-step.

While a rank holds prompts and has nothing else to do, its scheduler says that it has no requests.
So the engine sleeps until a message comes: a new prompt, or the alarm that is set here.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.request import Request, RequestStatus

from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.engine.admission.gate import AdmissionGate

READY = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
"""Status of a waiting request that a step could take. Others wait for something else first."""


def admitting(scheduler_class: type[Any], config: DwdpConfig, min_tokens: int) -> type[Any]:
    """A subclass of vLLM's scheduler in use that holds prompts back, see AdmissionGate.

    It holds them only while the rank has nothing to run: neither a request that decodes nor the
    rest of a prompt that was cut. `min_tokens` is limited to what a step can have.
    """
    _introduce_engines()

    class AdmittingScheduler(scheduler_class):
        engine: Any = None
        """The engine, once it has given a request; prompts aren't held in one without a queue."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            largest_step = self.scheduler_config.max_num_batched_tokens
            self._gate = AdmissionGate(min(min_tokens, largest_step), config.max_wait_s)
            self._alarm: threading.Timer | None = None

        def has_requests(self) -> bool:
            with self._holding_prompts():
                return bool(super().has_requests())

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            with self._holding_prompts() as is_held:
                if not is_held:
                    self._gate.open()
                return super().schedule(*args, **kwargs)

        @contextlib.contextmanager
        def _holding_prompts(self) -> Iterator[bool]:
            """Within this context the scheduler ignores prompts, as in a pause, if they are held.

            The attribute is set, because `set_pause_state` logs a line each time.
            """
            held_s = 0.0 if self._may_start() else self._gate.held_s(self._waiting_tokens())
            if not held_s:
                yield False
                return
            self._set_alarm(held_s)
            self._pause_state = PauseState.PAUSED_NEW
            try:
                yield True
            finally:
                self._pause_state = PauseState.UNPAUSED

        def _may_start(self) -> bool:
            """Whether holding prompts is of no use, because a step runs anyway or can't grow."""
            return (
                not isinstance(self.engine, EngineCoreProc)
                or not self.engine.is_running()
                or self.pause_state is not PauseState.UNPAUSED
                or len(self.waiting) >= self.scheduler_config.max_num_seqs
                or any(map(_takes_part_in_next_step, self.running))
            )

        def _waiting_tokens(self) -> int:
            """Prompt tokens that wait, up to enough; those in the prefix cache count, too."""
            num_tokens = 0
            for request in self.waiting:
                if request.status in READY:
                    num_tokens += request.num_tokens - request.num_computed_tokens
                if num_tokens >= self._gate.min_tokens:
                    break
            return num_tokens

        def _set_alarm(self, seconds: float) -> None:
            if self._alarm is not None and self._alarm.is_alive():
                return
            message = (EngineCoreRequestType.WAKEUP, None)
            self._alarm = threading.Timer(seconds, self.engine.input_queue.put, (message,))
            self._alarm.daemon = True
            self._alarm.start()

    return AdmittingScheduler


def _takes_part_in_next_step(request: Request) -> bool:
    """Whether a running request is a prompt that was cut, or will decode."""
    return request.num_computed_tokens < request.num_prompt_tokens or request.max_tokens > 1


def _introduce_engines() -> None:
    """Have engines of this process tell their schedulers who they are; once is enough.

    An engine that holds prompts also says how many wait, by which front-ends balance their ranks:
    vLLM's engine says it only when it has something to do.
    """
    stock = EngineCore.add_request
    if hasattr(stock, "introduces"):
        return

    @functools.wraps(stock)
    def add_request(engine: EngineCore, *args: Any, **kwargs: Any) -> None:
        engine.scheduler.engine = engine
        stock(engine, *args, **kwargs)
        if isinstance(engine, EngineCoreProc) and not engine.has_work():
            engine._maybe_publish_request_counts()

    add_request.introduces = True  # type: ignore[attr-defined]
    EngineCore.add_request = add_request
