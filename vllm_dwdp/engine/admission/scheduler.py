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
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.core import EngineCore, EngineCoreProc
from vllm.v1.request import Request, RequestStatus

from vllm_dwdp.config import ConfigError, DwdpConfig
from vllm_dwdp.engine.admission.gate import AdmissionGate

LOADING = RequestStatus.WAITING_FOR_REMOTE_KVS
"""Status of a request whose KV cache comes from another server."""

READY = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
"""Status of a waiting request that a step could take. Others wait for something else first."""


class AdmittingScheduler(Scheduler):
    """A mixin for vLLM's scheduler in use, which holds prompts back, see AdmissionGate.

    It holds them only while the rank has nothing to run: neither a request that decodes nor the
    rest of a prompt that was cut.

    dwdp_config, dwdp_min_tokens: the user's options, and the prompt tokens that a step should have;
        the latter is limited to what a step can have.
    """

    dwdp_config: DwdpConfig
    dwdp_min_tokens: int
    engine: Any = None
    """The engine of this scheduler; None until it has passed on its first request. Prompts are held
    only if the engine has a queue of messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        largest_step = self.scheduler_config.max_num_batched_tokens
        min_tokens = min(self.dwdp_min_tokens, largest_step)
        self._gate = AdmissionGate(min_tokens, self.dwdp_config.max_wait_s)
        self._is_alarm_set = False

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
        """Whether holding prompts is of no use, because a step runs anyway or can't grow.

        vLLM 0.30 and 0.31 would also hold a request whose KV cache comes from elsewhere.
        """
        return (
            not isinstance(self.engine, EngineCoreProc)
            or not self.engine.is_running()
            or self.pause_state is not PauseState.UNPAUSED
            or len(self.waiting) >= self.scheduler_config.max_num_seqs
            or any(map(_takes_part_in_next_step, self.running))
            or any(one.status is LOADING for one in self.requests.values())
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
        if self._is_alarm_set:
            return
        self._is_alarm_set = True
        alarm = threading.Timer(seconds, self._ring)
        alarm.daemon = True
        alarm.start()

    def _ring(self) -> None:
        """Wake the engine, in the alarm's thread. The engine that wakes may need another alarm."""
        self._is_alarm_set = False
        self.engine.input_queue.put((EngineCoreRequestType.WAKEUP, None))


def admitting(scheduler_class: type[Any], config: DwdpConfig, min_tokens: int) -> type[Any]:
    """A subclass of vLLM's scheduler in use that holds prompts back.

    Raises ConfigError if the class in use, which the user may choose, isn't derived from vLLM's.
    """
    if not issubclass(scheduler_class, Scheduler):
        raise ConfigError(
            "dwdp.min_tokens_per_step needs a scheduler that is derived from vLLM's Scheduler, got "
            f"{scheduler_class.__name__}; drop the option, or --scheduler-cls."
        )
    _introduce_engines()
    name = f"Admitting{scheduler_class.__name__}"
    options = {"dwdp_config": config, "dwdp_min_tokens": min_tokens}
    return type(name, (AdmittingScheduler, scheduler_class), options)


def _takes_part_in_next_step(request: Request) -> bool:
    """Whether a running request is a prompt that was cut, or will decode."""
    return request.num_computed_tokens < request.num_prompt_tokens or request.max_tokens > 1


def _introduce_engines() -> None:
    """Have engines of this process tell their schedulers who they are; once is enough.

    While an engine holds prompts it has no work, and vLLM's engine reports its request counts only
    when it has work. So this reports them after each request; front-ends balance ranks by them.
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
