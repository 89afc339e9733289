# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Names that vLLM keeps to itself, on the way of a request from the `LLM` class to its engine.

The room `offline/` takes them from here, so that it knows vLLM by its public classes alone.
"""

from vllm.renderers.inputs.preprocess import conversation_to_seq, prompt_to_seq
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

__all__ = [
    "EngineCoreRequest",
    "EngineDeadError",
    "MsgpackDecoder",
    "MsgpackEncoder",
    "conversation_to_seq",
    "prompt_to_seq",
]
