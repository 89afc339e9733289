# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Whether a request survives vLLM's way to its engine, which is another process.

vLLM finds out only when it sends a request: what it can't write raises TypeError there, and what
the engine can't read ends the thread that reads, so that every call waits forever.
"""

import re

import msgspec
from vllm.exceptions import VLLMValidationError

from vllm_dwdp.engine.request_path import EngineCoreRequest, MsgpackDecoder, MsgpackEncoder


class EngineWire:
    """Writes and reads requests as vLLM's client and engine do. Used by one thread."""

    def __init__(self) -> None:
        self._encoder = MsgpackEncoder()
        self._decoder = MsgpackDecoder(EngineCoreRequest)

    def check(self, request: EngineCoreRequest) -> None:
        """Raises vLLM's TypeError for what it can't send, VLLMValidationError for the rest."""
        try:
            self._decoder.decode(self._encoder.encode(request))
        except msgspec.ValidationError as error:
            reason = re.sub(r"\$\[(\d+)\]", _field, str(error))
            raise VLLMValidationError(f"vLLM's engine can't read this prompt: {reason}") from error


def _field(position: re.Match[str]) -> str:
    """The name of a request's field: on the wire fields have positions."""
    return EngineCoreRequest.__struct_fields__[int(position[1])]
