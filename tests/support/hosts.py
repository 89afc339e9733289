# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs commands as if on another host, in Linux namespaces of their own.

Such a host has its own process ids, name and boot id, which is all that dwdp looks at. It also has
its own shared memory, so that what vLLM leaves there goes with the host. If it is asked for, it has
a network of its own, see links.py.
"""

import functools
import os
import shlex
import subprocess
import uuid
from collections.abc import Sequence

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def on_host(
    name: str, command: Sequence[str], *, has_network: bool = False, steps: Sequence[str] = ()
) -> list[str]:
    """A command that runs `command` on the host `name`. All processes end with the first one.

    steps: shell commands that the host runs before.
    """
    boot_id = f"/tmp/dwdp-test-boot-{os.getpid()}-{name}"
    all_steps = (
        f"hostname {shlex.quote(name)}",
        f"echo {uuid.uuid4()} > {boot_id}",
        f"mount --bind {boot_id} {BOOT_ID}",
        f"rm {boot_id}",
        "mount -t tmpfs tmpfs /dev/shm",
        *steps,
        f"exec {shlex.join(command)}",
    )
    namespaces = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
    namespaces += ["--net"] if has_network else []
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return [*namespaces, *as_root, "sh", "-c", " && ".join(all_steps)]


@functools.cache
def reason_unavailable() -> str | None:
    """Why this machine can't make hosts; None if it can."""
    try:
        ran = subprocess.run(on_host("try", ["hostname"]), capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"no unshare: {error}"
    return None if ran.stdout == "try\n" else f"no namespaces of its own: {ran.stderr.strip()}"
