# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What vllm.LLM has and vllm_dwdp.LLM has not, and why."""

from typing import Any, NoReturn

READ_ONLY = "expert weights are read-only, since peers read them; build a new LLM to change them."
ASLEEP = "a rank can't sleep, since peers read its experts; shut the LLM down instead."
MANY_ENGINES = "it has an engine for each rank, in processes of their own; use collective_rpc."

REFUSED = {
    **dict.fromkeys(("sleep", "wake_up", "release_kv_cache_memory"), ASLEEP),
    **dict.fromkeys(
        (
            *("init_weight_transfer_engine", "shutdown_weight_transfer_engine"),
            *("start_weight_update", "start_draft_weight_update", "update_weights"),
            *("finish_weight_update", "update_weight_version", "get_weight_version"),
        ),
        READ_ONLY,
    ),
}
"""Methods by name, with the sentence that ends a call."""

REFUSED_ATTRIBUTES = dict.fromkeys(
    ("llm_engine", "engine_class", "model_config", "renderer", "input_processor"), MANY_ENGINES
)


class RefusedMethods:
    """A base of vllm_dwdp.LLM. Its methods raise NotImplementedError, attributes AttributeError."""

    def __getattr__(self, name: str) -> Any:
        if why := REFUSED_ATTRIBUTES.get(name):
            raise AttributeError(f"vllm_dwdp.LLM has no {name}: {why}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _refusal(name: str) -> Any:
    def call(self: RefusedMethods, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"vllm_dwdp.LLM.{name}: {REFUSED[name]}")

    call.__name__ = name
    call.__doc__ = f"Refused: {REFUSED[name]}"
    return call


for _name in REFUSED:
    setattr(RefusedMethods, _name, _refusal(_name))
