# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The command that starts a server of an arm."""

import os
import random
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.recipe import ServerRecipe

SERVED_NAME = "measured"
KV_CACHE_BYTES = 512 << 20
"""By default vLLM takes nearly all memory for it, and the arms share that of a host."""

LOWEST_PORT, HIGHEST_PORT = 20_000, 32_000
"""Below the ports that the kernel gives to connections by default."""


@dataclass(frozen=True)
class Common:
    """What the servers of all arms have in common.

    options: of the user, for every `vllm serve`. small_cache: give each engine a KV cache of
    KV_CACHE_BYTES.
    """

    model: str
    load: Load
    options: tuple[str, ...]
    small_cache: bool

    def all_options(self) -> list[str]:
        """The user's options, with what they leave open."""
        found = list(self.options)
        if not self._has("--max-model-len"):
            found += ["--max-model-len", str(self.load.longest + 64)]
        if not self._has("--enable-prefix-caching", "--no-enable-prefix-caching"):
            found += ["--no-enable-prefix-caching"]
        if self.small_cache and not self._has(
            "--kv-cache-memory-bytes", "--gpu-memory-utilization"
        ):
            found += ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES)]
        return found

    def trusts_remote_code(self) -> bool:
        return self._has("--trust-remote-code")

    def _has(self, *names: str) -> bool:
        return any(option.split("=")[0] in names for option in self.options)


def arguments(common: Common, recipe: ServerRecipe, port: int) -> list[str]:
    """The command as a list; it runs the vLLM of this Python."""
    vllm = str(Path(sys.executable).with_name("vllm"))
    found = [vllm, "serve", common.model, "--served-model-name", SERVED_NAME]
    found += ["--host", "127.0.0.1", "--port", str(port)]
    return [*found, *common.all_options(), *recipe.options]


def environment(recipe: ServerRecipe) -> dict[str, str]:
    """All variables of a server. A size of the KV cache in the environment would win over ours."""
    found = {**os.environ, **recipe.environment}
    found.pop("VLLM_CPU_KVCACHE_SPACE", None)
    return found


def printed(common: Common, recipe: ServerRecipe, port: int) -> str:
    """The command as one would type it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in recipe.environment.items()]
    _, *rest = arguments(common, recipe, port)
    return " ".join([*variables, "vllm", shlex.join(rest)])


def free_ports(count: int) -> list[int]:
    """Different ports of the loopback device that nothing listens on now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(LOWEST_PORT, HIGHEST_PORT), 1000):
        if len(found) < count and _is_free(port):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
