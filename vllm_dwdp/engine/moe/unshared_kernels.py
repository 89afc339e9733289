# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Names the kernels that dwdp can't run on all experts of a layer. vLLM may choose them by itself.

See also engine/setup/format_checks.py, which refuses them where an option names them.
"""

import re

from vllm_dwdp.config import ConfigError

UNSHARED = re.compile("Humming|B12x|MoeEp|MoonEP")
"""In names of vLLM's classes: kernels whose weights or code depend on the number of local experts,
and kernels that exchange tokens between ranks by themselves."""


def refuse_unshared(layer_name: str, kernel: type | None) -> None:
    """Raise ConfigError if the class `kernel` is one of UNSHARED."""
    if kernel is not None and UNSHARED.search(kernel.__name__):
        raise ConfigError(
            f"{layer_name}: dwdp can't run vLLM's kernel {kernel.__name__} on the experts of all "
            "ranks; choose another one with --moe-backend, for example triton or marlin."
        )
