# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM's variables in the environment: those that it can't read are refused by name.

vLLM reads each of them when it needs it, some only in a worker that has loaded the model, and then
says what it found there, but not where.
"""

import os

from vllm import envs

from vllm_dwdp.config import ConfigError
from vllm_dwdp.engine.setup import last_words

DATA_PARALLEL = "VLLM_DP_"
"""How the variables begin that vLLM reads before it looks for an executor."""
OF_KUBERNETES = ", or set enableServiceLinks to false if Kubernetes made it of a service's name"


def check_data_parallel() -> None:
    """Raise ConfigError if vLLM can't read a variable that says which rank this is."""
    if reason := reason_unreadable(DATA_PARALLEL):
        with last_words.of_refused_options():
            raise ConfigError(reason)


def reason_unreadable(prefix: str = "") -> str | None:
    """What to do about the first variable with this prefix that vLLM can't read; None: all fine."""
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
