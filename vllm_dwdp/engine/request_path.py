# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM's internal names that dwdp uses to bring a request from the `LLM` class to an engine.

The package `offline` imports them from here. Besides them it uses only public names of vLLM.
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
