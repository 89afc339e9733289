# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Refuses values of vLLM's environment variables that vLLM can't read, and names the variable.

vLLM reads a variable only when it needs it, which may be in a worker that has loaded the model. Its
own error then shows the value, but not the variable's name.
"""

import os

from vllm import envs

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.setup import last_words

DATA_PARALLEL = "VLLM_DP_"
"""Prefix of the variables that vLLM reads before it looks for an executor."""
OF_KUBERNETES = ", or set enableServiceLinks to false if Kubernetes made it of a service's name"


def check_data_parallel() -> None:
    """Raise ConfigError if vLLM can't read one of the variables `VLLM_DP_*`."""
    if reason := reason_unreadable(DATA_PARALLEL):
        with last_words.of_refused_options():
            raise ConfigError(reason)


def reason_unreadable(prefix: str = "") -> str | None:
    """A sentence about the first variable with this prefix that vLLM can't read; None if none."""
    for name in sorted(os.environ.keys() & envs.environment_variables.keys()):
        if not name.startswith(prefix):
            continue
        try:
            envs.environment_variables[name]()
        except Exception as error:
            value = os.environ[name]
            return (
                f"expected something that vLLM can read in {name}, got '{value}' ({error}); "
                f"correct or unset it{OF_KUBERNETES if '://' in value else ''}."
            )
    return None
