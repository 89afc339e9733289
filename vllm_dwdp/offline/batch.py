# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Batches of prompts, which a rank gives to a method of its vllm.LLM in one call.

vLLM's methods for pooling, scores and beams prepare prompts, step the engine and work on its
outputs in one go, so they can't be fed prompt by prompt as `generate` can.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_dwdp.engine.request_path import prompt_to_seq

PER_PROMPT = ("pooling_params", "lora_request")
"""Options that may be lists with one value for each prompt."""

PAIRS = ("data_1", "data_2")
"""The arguments of vllm.LLM.score: one text or as many as there are in the second, and texts."""

SHARES_OF_A_RANK = 4
"""A rank gets at least so many batches, if there are enough prompts, so that all end together."""


@dataclass(frozen=True)
class Batch:
    """A call of a method of vllm.LLM. num_prompts: as many outputs are in its result."""

    method: str
    arguments: dict[str, Any]
    num_prompts: int

    def run_on(self, llm: Any) -> list[Any]:
        """Call the method of a rank's vllm.LLM; raises what it raises."""
        method = getattr(llm, self.method)
        bound = inspect.signature(method).bind_partial()
        bound.arguments.update(self.arguments, use_tqdm=False)
        return list(method(*bound.args, **bound.kwargs))


def batches(
    method: str, arguments: dict[str, Any], *, num_ranks: int, max_prompts: int
) -> list[Batch]:
    """The call in batches of at most `max_prompts` prompts, for this number of ranks.

    arguments: of the method, by name, without `use_tqdm`.
    """
    columns = _columns(arguments)
    if columns is None:
        return [Batch(method, arguments, 1)]
    num_prompts = max(map(len, columns.values()))
    size = max(1, min(max_prompts, num_prompts // (SHARES_OF_A_RANK * num_ranks)))
    return [
        Batch(method, arguments | _cut(columns, start, start + size), len(chosen))
        for start in range(0, num_prompts, size)
        if (chosen := range(start, min(start + size, num_prompts)))
    ] or [Batch(method, arguments, 0)]


def _columns(arguments: dict[str, Any]) -> dict[str, Sequence[Any]] | None:
    """The arguments that have a value for each prompt; None for a call that can't be divided.

    Arguments that don't fit together aren't divided, so that vLLM refuses them in its own words.
    """
    if "prompts" in arguments:
        prompts = arguments["prompts"]
        if isinstance(prompts, dict) and "data" in prompts:
            return None
        columns: dict[str, Sequence[Any]] = {"prompts": list(prompt_to_seq(prompts))}
    else:
        columns = dict(_pairs(*(arguments[name] for name in PAIRS)))
    for name in PER_PROMPT:
        if isinstance(values := arguments.get(name), Sequence):
            columns[name] = values
    return columns if len(set(map(len, columns.values()))) == 1 else None


def _pairs(first: Any, second: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    """Those of the two arguments of `score` that are divided: both, or only the second."""
    if isinstance(first, list) and len(first) > 1:
        yield PAIRS[0], first
    yield PAIRS[1], second if isinstance(second, list) else [second]


def _cut(columns: dict[str, Sequence[Any]], start: int, end: int) -> dict[str, Any]:
    return {name: values[start:end] for name, values in columns.items()}
