# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The prompts of one offline call, handed out to ranks one by one."""

from collections import deque
from collections.abc import Sequence
from typing import Any

PER_PROMPT_OPTIONS = ("lora_request", "priority")
"""Options of vllm.LLM.generate that may be lists with one value for each prompt."""


class PromptQueue:
    """The prompts of one call: which wait, which ended, which were tried before.

    first_id: prompts are numbered from here on; no two calls share a number, so that an answer to
    a call that was broken off is told from those of the next.
    """

    def __init__(
        self, first_id: int, kind: str, prompts: Sequence[Any], params: Any, options: Any
    ) -> None:
        for name, values in {"sampling_params": params, **_per_prompt(options)}.items():
            _check_length(name, values, len(prompts))
        self._ids = range(first_id, first_id + len(prompts))
        self._kind = kind
        self._prompts = prompts
        self._params = params
        self._options = options
        self._outputs: list[Any] = [None] * len(prompts)
        self._errors: dict[int, str] = {}
        self._retried: set[int] = set()
        self.waiting = deque(self._ids)
        self.num_open = len(prompts)

    def __contains__(self, prompt_id: int) -> bool:
        return prompt_id in self._ids

    def message(self, prompt_id: int) -> tuple[Any, ...]:
        """What a rank is sent; see rank_process."""
        index = self._ids.index(prompt_id)
        params = self._params[index] if isinstance(self._params, Sequence) else self._params
        own = {name: values[index] for name, values in _per_prompt(self._options).items()}
        return self._kind, prompt_id, self._prompts[index], params, {**self._options, **own}

    def finish(self, prompt_id: int, result: Any, *, is_error: bool) -> None:
        """Keep a prompt's output, or the text of its error."""
        index = self._ids.index(prompt_id)
        self.num_open -= 1
        if is_error:
            self._errors[index] = result
        else:
            self._outputs[index] = result

    def retry(self, prompt_id: int, rank: int) -> None:
        """Put a prompt of a dead rank in front of the queue; the second time it is an error."""
        if prompt_id in self._retried:
            text = f"dwdp rank {rank} died with it, as one did before"
            self.finish(prompt_id, text, is_error=True)
            return
        self._retried.add(prompt_id)
        self.waiting.appendleft(prompt_id)

    def take_back(self, prompt_id: int) -> None:
        """Put a prompt that reached no rank in front of the queue."""
        self.waiting.appendleft(prompt_id)

    def results(self) -> list[Any]:
        """All outputs; raises ValueError with the first prompt that was refused."""
        if self._errors:
            index = min(self._errors)
            raise ValueError(
                f"{len(self._errors)} of {len(self._outputs)} prompts failed, first prompt "
                f"{index}: {self._errors[index]}"
            )
        return self._outputs


def _per_prompt(options: dict[str, Any]) -> dict[str, Sequence[Any]]:
    return {
        name: values
        for name, values in options.items()
        if name in PER_PROMPT_OPTIONS and isinstance(values, Sequence)
    }


def _check_length(name: str, values: Any, num_prompts: int) -> None:
    if isinstance(values, Sequence) and len(values) != num_prompts:
        raise ValueError(
            f"expected {num_prompts} {name}, got {len(values)}; "
            "give one for all prompts or one for each."
        )
