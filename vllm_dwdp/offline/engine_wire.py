# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that a request can be sent to vLLM's engine, which is another process.

vLLM finds out only as it sends a request. If it can't encode the request, it raises TypeError. If
the engine can't decode the request, the engine's reading thread ends, and every call waits forever.
"""

import re

import msgspec
from vllm.exceptions import VLLMValidationError

from vllm_dwdp.engine.request_path import EngineCoreRequest, MsgpackDecoder, MsgpackEncoder


class EngineWire:
    """Encodes and decodes requests as vLLM's client and engine do. Used by one thread."""

    def __init__(self) -> None:
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)

    def check(self, request: EngineCoreRequest) -> None:
        """Raise if the request can't be sent.

        Raises vLLM's TypeError if vLLM can't encode it, and VLLMValidationError if the engine
        can't decode it.
        """
        try:
            self._decoder.decode(self._encoder.encode(request))
        except msgspec.ValidationError as error:
            reason = re.sub(r"\$\[(\d+)\]", _field, str(error))
            raise VLLMValidationError(f"vLLM's engine can't read this prompt: {reason}") from error


def _field(position: re.Match[str]) -> str:
    """The name of a request's field; msgspec's errors have only its position."""
    return EngineCoreRequest.__struct_fields__[int(position[1])]
