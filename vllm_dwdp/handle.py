# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What one rank gives another to map its memory: a file descriptor or a fabric handle."""

import os
from collections.abc import Iterable

from vllm_dwdp._core import HandleType

Handle = int | bytes
"""A descriptor, which has an owner who closes it; the bytes of a fabric handle."""

TYPE_NAMES = {HandleType.FILE_DESCRIPTOR: "file descriptors", HandleType.FABRIC: "fabric handles"}


def close_handles(handles: Iterable[Handle]) -> None:
    for handle in handles:
        if isinstance(handle, int):
            os.close(handle)
