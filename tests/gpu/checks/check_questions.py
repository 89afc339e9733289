# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds out what CUDA's documents leave open: writes to read-only mappings, dead exporters."""

import os
import signal
import socket
import subprocess
import sys

import torch
from figures import say
from parts import PATIENCE, REHEARSE, Need, make_device, part, run_parts

from vllm_dwdp._core import HandleType

CHILD_LIMIT_S = 60 * PATIENCE
MARK = 7


@part("write through a read-only mapping", Need.TORCH)
def write_to_view(device):
    process = start_child("write", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate(timeout=CHILD_LIMIT_S)
    assert "readable" in output, errors
    is_noticed = "illegal memory access" in errors
    assert is_noticed or process.returncode == 0, errors
    answer = "illegal memory access" if is_noticed else "is not noticed"
    say("write through a read-only mapping", answer=answer)


@part("memory of a killed exporter")
def killed_exporter(device):
    """Reads a block before and after its exporter is killed; new memory is allocated in between."""
    ours, theirs = socket.socketpair()
    process = start_child("export", str(theirs.fileno()), pass_fds=[theirs.fileno()])
    theirs.close()
    ours.settimeout(CHILD_LIMIT_S)
    _, (fd,), _, _ = socket.recv_fds(ours, 1, 1)
    driver = device.driver()
    num_bytes = 4 * driver.granularity
    view = driver.reserve_view(num_bytes)
    view.map_block(0, driver.import_block(fd, num_bytes))
    view.finish()
    assert shows_marks(device, view)
    process.kill()
    process.wait()
    others = [driver.create_slot_page(8 * driver.granularity) for _ in range(4)]
    answer = "unchanged" if shows_marks(device, view) else "changed"
    say("memory of a killed exporter", answer=answer, kernel=os.uname().release)
    del others


def shows_marks(device, view):
    stream = device.make_stream()
    with device.on(stream):
        found = device.read(stream, view, view.num_bytes)
    device.synchronize(stream)
    device.destroy_stream(stream)
    return bool((found == MARK).all())


def start_child(*arguments, **options):
    """Start this script in another process, which may be killed."""
    flags = [REHEARSE] if REHEARSE in sys.argv else []
    return subprocess.Popen([sys.executable, __file__, *arguments, *flags], **options)


def write_in_child():
    driver = make_device().driver()
    view = driver.reserve_view(driver.granularity)
    view.map_private(0, driver.granularity)
    view.finish()
    shown = torch.from_dlpack(view.bytes_tensor())
    assert not shown.any()
    print("readable", flush=True)
    shown.fill_(1)
    torch.cuda.synchronize()


def export_in_child(fd):
    """Send a block's descriptor over the socket `fd`, then wait to be killed."""
    driver = make_device().driver()
    source = torch.full((4 * driver.granularity,), MARK, dtype=torch.uint8)
    block = driver.create_block(source.nbytes)
    block.fill(0, source.data_ptr(), source.nbytes)
    block.seal()
    with socket.socket(fileno=fd) as peer:
        socket.send_fds(peer, [b"x"], [block.export_handle(HandleType.FILE_DESCRIPTOR)])
        signal.pause()


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write_in_child()
    elif sys.argv[1:2] == ["export"]:
        export_in_child(int(sys.argv[2]))
    else:
        run_parts(write_to_view, killed_exporter)
