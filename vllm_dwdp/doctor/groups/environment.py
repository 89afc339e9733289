# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Variables of the environment, and the folder for caches. No value of a variable is shown."""

import os
import stat
from pathlib import Path

from vllm_dwdp.config import ConfigError
from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.groups.installation import plugin
from vllm_dwdp.doctor.host import Host
from vllm_dwdp.group.meet.secret import FILE_VARIABLE, VARIABLE, read_secret

NAMED = ("VLLM_", "CUDA_", "NVIDIA_", "NCCL_", "UCX_", "RAY_", "OMP_", "KMP_", "GOMP_", "TORCH_")
NAMED_ALONE = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "HF_HOME", "HF_TOKEN")

BAD_SECRET = Case(
    Status.FAIL,
    "it can't be used",
    f"Put 16 bytes or more into a file of this user, name it in {FILE_VARIABLE}, and unset "
    f"{VARIABLE}; `openssl rand -hex 32` makes a secret.",
)
OPEN_SECRET = Case(
    Status.WARN,
    "other users can read the file",
    "Take their rights to the file away: chmod 600.",
)


@check(
    "secret",
    f"whether {FILE_VARIABLE} or {VARIABLE} gives a secret that can be used",
    *(BAD_SECRET, OPEN_SECRET),
)
def secret(host: Host) -> Finding:
    try:
        found = read_secret()
    except ConfigError as error:
        return BAD_SECRET.found(str(error))
    if found is None:
        return ok("none is set; only groups over several hosts need one")
    path = host.variable(FILE_VARIABLE)
    if path and Path(path).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return OPEN_SECRET.found(f"other users can read the file that {FILE_VARIABLE} names")
    return ok(f"{FILE_VARIABLE if path else VARIABLE} is set and can be used")


BAD_VARIABLE = Case(
    Status.FAIL,
    "vLLM can't use the value of one",
    "Correct or unset the variable that the text names.",
)


@check(
    "variables for vLLM",
    "whether vLLM can use the values of all its variables that are set",
    BAD_VARIABLE,
    needs=(plugin,),
)
def vllm_variables(host: Host) -> Finding:
    reason = host.ask("vllm")["unreadable"]
    return BAD_VARIABLE.found(reason) if reason else ok("vLLM can use all that are set")


@check("variables that are set", "the names of variables that change what vLLM or its libraries do")
def variables(host: Host) -> Finding:
    names = sorted(n for n in os.environ if n.startswith(NAMED) or n in NAMED_ALONE)
    return ok(", ".join(names) or "none")


NO_CACHE = Case(
    Status.WARN,
    "this user can't write there",
    "Set VLLM_CACHE_ROOT to a folder that this user can write to; otherwise every start compiles "
    "anew, and dwdp.extra_expert_bytes learns nothing.",
)


@check(
    "caches",
    "whether this user can write to the folder of vLLM's caches (VLLM_CACHE_ROOT)",
    NO_CACHE,
    needs=(plugin,),
)
def cache(host: Host) -> Finding:
    folder = Path(host.ask("vllm")["cache_root"]).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return NO_CACHE.found(f"{folder} can't be written to")
    return ok(f"{folder} can be written to")


GROUP = Group("Environment", (secret, vllm_variables, variables, cache))
