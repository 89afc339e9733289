# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Handles, by which one rank maps another's memory: a file descriptor or a fabric handle."""

import os
from collections.abc import Iterable, Sequence

from vllm_dwdp._core import Block, HandleType, MemoryDriver

Handle = int | bytes
"""A file descriptor, which its owner must close, or the bytes of a fabric handle."""

TYPE_NAMES = {HandleType.FILE_DESCRIPTOR: "file descriptors", HandleType.FABRIC: "fabric handles"}


def close_handles(handles: Iterable[Handle]) -> None:
    for handle in handles:
        if isinstance(handle, int):
            os.close(handle)


def export_all(blocks: Iterable[Block], handle_type: HandleType) -> list[tuple[Handle, int]]:
    """(handle, bytes) of each block; the caller owns the handles.

    If one export fails, the handles exported before it are closed, and the error is raised.
    """
    found: list[tuple[Handle, int]] = []
    try:
        for block in blocks:
            found.append((block.export_handle(handle_type), block.num_bytes))
    except BaseException:
        close_handles(handle for handle, _ in found)
        raise
    return found


def import_all(
    driver: MemoryDriver, handles: Sequence[Handle], sizes: Sequence[int], starts: Sequence[int]
) -> list[Block]:
    """Import a block by each handle, and take over all handles, also if an import fails.

    sizes: bytes of each block. starts: the offset of each in its view. Raises DriverError.
    """
    blocks: list[Block] = []
    left = list(handles)
    try:
        for num_bytes, start in zip(sizes, starts, strict=True):
            blocks.append(driver.import_block(left.pop(0), num_bytes, start))
    finally:
        close_handles(left)
    return blocks
