# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Prompts of an offline call, as the caller gave them and as a rank rendered them."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vllm import PoolingParams, SamplingParams
from vllm.exceptions import VLLMValidationError

from vllm_dwdp.engine.request_path import conversation_to_seq, prompt_to_seq

PER_PROMPT_OPTIONS = ("lora_request", "priority")
"""Options of vllm.LLM.generate that may be sequences with one value for each prompt."""


class RawPrompt(NamedTuple):
    """One prompt as the caller gave it, with what LLM.enqueue or LLM.enqueue_chat needs for it.

    kind: "generate" or "chat". params: a tuple of one element; None if the caller gave none.
    """

    kind: str
    prompt: Any
    params: tuple[Any] | None
    options: dict[str, Any]


class RenderedPrompt(NamedTuple):
    """One prompt as LLMEngine.add_request takes it: token ids, checked by vLLM."""

    prompt: Any
    params: Any
    lora_request: Any
    priority: int


def raw_prompts(kind: str, prompts: Any, params: Any, options: dict[str, Any]) -> list[RawPrompt]:
    """One RawPrompt for each prompt, in the order in which vLLM iterates over them.

    Raises what vLLM raises for prompts without a length, for an option with more or fewer values
    than there are prompts, and for parameters of another class.
    """
    as_sequence = conversation_to_seq if kind == "chat" else prompt_to_seq
    found = [_picklable(prompt) for prompt in as_sequence(prompts)]
    num_prompts = len(found)
    each_params = _one_each("params", params, num_prompts)
    if params is not None:
        _check_params(each_params)
    own = {
        name: _one_each(name, options[name], num_prompts)
        for name in PER_PROMPT_OPTIONS
        if options.get(name) is not None
    }
    shared = {name: value for name, value in options.items() if name not in PER_PROMPT_OPTIONS}
    return [
        RawPrompt(
            kind,
            prompt,
            None if params is None else (each_params[i],),
            {**shared, **{name: [values[i]] for name, values in own.items()}},
        )
        for i, prompt in enumerate(found)
    ]


def num_tokens(item: "RawPrompt | RenderedPrompt") -> int:
    """The length of a prompt, as far as it is known: one with images isn't sent as tokens."""
    if isinstance(item, RawPrompt):
        return 1
    return max(1, len(item.prompt.get("prompt_token_ids") or ()))


def bound_options(method: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
    """Arguments of vllm.LLM.generate or chat by name; raises TypeError if they don't fit it."""
    try:
        bound = inspect.signature(method).bind(None, *args, **options)
    except TypeError as error:
        raise TypeError(f"LLM.{method.__name__}() {error}") from None
    return {name: value for name, value in bound.arguments.items() if name != "self"}


def _picklable(prompt: Any) -> Any:
    """The prompt, as a list if it is an iterator over messages: iterators don't pickle."""
    return list(prompt) if isinstance(prompt, Iterator) else prompt


def _check_params(each_params: Sequence[Any]) -> None:
    """Raise vLLM's TypeError here, not in a rank: wrong parameters might not pickle."""
    for params in each_params:
        if not isinstance(params, SamplingParams | PoolingParams):
            raise TypeError(
                "params must be either SamplingParams or PoolingParams, "
                f"but got {type(params).__name__}"
            )


def _one_each(name: str, values: Any, num_prompts: int) -> Sequence[Any]:
    if not isinstance(values, Sequence):
        return [values] * num_prompts
    if len(values) != num_prompts:
        raise VLLMValidationError(
            f"The lengths of prompts ({num_prompts}) and {name} ({len(values)}) must be the same."
        )
    return values
