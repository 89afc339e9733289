# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What no document settles: writes to read-only mappings, an exporter's death."""

import os
import signal
import socket
import subprocess
import sys

import torch
from figures import say
from gpu import Gpu, bytes_of

from vllm_dwdp._core import HandleType

NUM_BYTES = 8 << 20


def write_through_a_view():
    """Child: a kernel writes to a read-only view."""
    driver = Gpu().driver()
    view = driver.reserve_view(NUM_BYTES)
    view.map_private(0, NUM_BYTES)
    view.finish()
    assert not bytes_of(view).any()
    print("readable", flush=True)
    bytes_of(view).fill_(1)
    torch.cuda.synchronize()


def export(fd):
    """Child: shares a block and waits to be killed."""
    driver = Gpu().driver()
    block = driver.create_block(NUM_BYTES)
    source = torch.full((NUM_BYTES,), 7, dtype=torch.uint8, device="cuda")
    block.fill(0, source.data_ptr(), NUM_BYTES)
    block.seal()
    with socket.socket(fileno=fd) as peer:
        socket.send_fds(peer, [b"x"], [block.export_handle(HandleType.FILE_DESCRIPTOR)])
        signal.pause()


def child(*arguments, **options):
    return subprocess.Popen([sys.executable, __file__, *arguments], **options)


def main():
    process = child("write", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate(timeout=120)
    assert "readable" in output, errors
    is_noticed = "illegal memory access" in errors
    assert is_noticed or process.returncode == 0, errors
    answer = "illegal memory access" if is_noticed else "is not noticed"
    say("write through a read-only mapping", answer=answer)

    ours, theirs = socket.socketpair()
    process = child("export", str(theirs.fileno()), pass_fds=[theirs.fileno()])
    theirs.close()
    _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    driver = Gpu().driver()
    view = driver.reserve_view(NUM_BYTES)
    view.map_block(0, driver.import_block(fd, NUM_BYTES))
    view.finish()
    assert (bytes_of(view) == 7).all()
    process.kill()
    process.wait()
    torch.empty(64 << 20, device="cuda").fill_(3)
    still = bool((bytes_of(view) == 7).all())
    say("exporter killed, its memory read on", answer="unchanged" if still else "changed")
    say("kernel", release=os.uname().release)


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write_through_a_view()
    elif sys.argv[1:2] == ["export"]:
        export(int(sys.argv[2]))
    else:
        main()
