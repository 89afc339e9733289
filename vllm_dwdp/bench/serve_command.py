# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The command that starts a server of an arm."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_dwdp.bench.arms import ServerRecipe
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.load import Load

SERVED_NAME = "measured"
HOST = "127.0.0.1"
KV_CACHE_BYTES = 512 << 20
"""By default vLLM takes nearly all memory for it, and the arms share that of a host."""

SET_BY_BENCH = frozenset(
    {
        *("--host", "--port", "--uds", "--api-key", "--served-model-name", "--model", "--config"),
        *("--data-parallel-size", "-dp", "--tensor-parallel-size", "-tp", "-pp"),
        *("--pipeline-parallel-size", "--distributed-executor-backend"),
        *("--enable-expert-parallel", "-ep"),
    }
)
"""Options that say what an arm is, or without which its server isn't found."""

FOR_CLIENTS = ("--tokenizer", "--tokenizer-mode", "--trust-remote-code")
"""Options that clients need, too."""


@dataclass(frozen=True)
class ServeOptions:
    """The options that the servers of all arms have in common.

    given: by the user, for every `vllm serve`. small_cache: whether to give each engine a KV cache
    of KV_CACHE_BYTES, unless the user says how large it is.
    """

    model: str
    load: Load
    given: tuple[str, ...]
    small_cache: bool

    def __post_init__(self) -> None:
        """Raises BenchError for an option that bench sets itself."""
        if clashing := SET_BY_BENCH.intersection(map(_name, self.given)):
            raise BenchError(
                f"expected no {', '.join(sorted(clashing))} behind '--': bench sets it; drop it."
            )

    def all(self) -> list[str]:
        """The given options, with what they leave open."""
        found = list(self.given)
        if not self._has("--max-model-len"):
            found += ["--max-model-len", str(self.load.longest + 64)]
        if not self._has("--enable-prefix-caching", "--no-enable-prefix-caching"):
            found += ["--no-enable-prefix-caching"]
        if self.small_cache and not self._has("--kv-cache-memory-bytes"):
            found += ["--kv-cache-memory-bytes", str(KV_CACHE_BYTES)]
        return found

    def of_clients(self) -> list[str]:
        """The given options that clients need, too, each with its value."""
        found: list[str] = []
        for option, following in zip(self.given, [*self.given[1:], "--"], strict=False):
            if _name(option) in FOR_CLIENTS:
                found.append(option)
                if "=" not in option and not following.startswith("-"):
                    found.append(following)
        return found

    def _has(self, *names: str) -> bool:
        return any(_name(option) in names for option in self.given)


def arguments(options: ServeOptions, recipe: ServerRecipe, port: int) -> list[str]:
    """The command as a list; it runs the vLLM of this Python."""
    vllm = str(Path(sys.executable).with_name("vllm"))
    found = [vllm, "serve", options.model, "--served-model-name", SERVED_NAME]
    found += ["--host", HOST, "--port", str(port)]
    return [*found, *options.all(), *recipe.options]


def environment(recipe: ServerRecipe) -> dict[str, str]:
    """All variables of a server. Those that would change what an arm is, or hide it, are left out.

    VLLM_CPU_KVCACHE_SPACE would win over the option, and VLLM_API_KEY would keep clients out.
    """
    hidden = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, **recipe.environment}


def printed(options: ServeOptions, recipe: ServerRecipe, port: int) -> str:
    """The command as one would type it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in recipe.environment.items()]
    _, *rest = arguments(options, recipe, port)
    return " ".join([*variables, "vllm", shlex.join(rest)])


def _name(option: str) -> str:
    """An option's name, with dashes as vLLM has them."""
    name = option.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name
