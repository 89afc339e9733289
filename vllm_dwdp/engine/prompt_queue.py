# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The prompts of one offline call, handed out to ranks one by one."""

from collections import deque
from collections.abc import Sequence
from typing import Any


class PromptQueue:
    """The prompts of one call: which wait, which ended, which were tried before."""

    def __init__(self, kind: str, prompts: Sequence[Any], params: Any, options: Any) -> None:
        self._kind = kind
        self._prompts = prompts
        self._params = params
        self._options = options
        self._outputs: list[Any] = [None] * len(prompts)
        self._errors: dict[int, str] = {}
        self._retried: set[int] = set()
        self.waiting = deque(range(len(prompts)))
        self.num_open = len(prompts)

    def message(self, index: int) -> tuple[Any, ...]:
        params = self._params[index] if isinstance(self._params, Sequence) else self._params
        return self._kind, index, self._prompts[index], params, self._options

    def finish(self, index: int, result: Any, *, is_error: bool) -> None:
        self.num_open -= 1
        if is_error:
            self._errors[index] = result
        else:
            self._outputs[index] = result

    def retry(self, index: int, rank: int) -> None:
        if index in self._retried:
            self.finish(index, f"dwdp rank {rank} died with it, as one did before", is_error=True)
            return
        self._retried.add(index)
        self.waiting.appendleft(index)

    def results(self) -> list[Any]:
        """All outputs; raises ValueError with the first prompt that was refused."""
        if self._errors:
            index = min(self._errors)
            raise ValueError(
                f"{len(self._errors)} of {len(self._outputs)} prompts failed, first prompt "
                f"{index}: {self._errors[index]}"
            )
        return self._outputs
