# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The vLLM plugin entry point: all that every vLLM process on the machine imports.

* `register()` never raises: an exception here would end every vLLM command.
* It wraps one static method, the look-up of executor names; users who don't select dwdp pass
  straight through it.
* Whoever selects dwdp where it can't run gets the reason, when they select it.
"""

import functools
from typing import Any

BACKEND_NAME = "dwdp"
EXECUTOR_PATH = "vllm_dwdp.engine.executor.DwdpExecutor"


def register() -> None:
    """Called once by vLLM in every process (entry point group `vllm.general_plugins`)."""
    try:
        _wrap_executor_lookup()
    except Exception:
        import logging

        logging.getLogger("vllm.dwdp").exception(
            "The dwdp plugin could not register; '--distributed-executor-backend dwdp' will not "
            "be found, everything else is unaffected."
        )


def _wrap_executor_lookup() -> None:
    from vllm.v1.executor.abstract import Executor

    stock_get_class = Executor.get_class
    if getattr(stock_get_class, "knows_dwdp", False):
        return

    @functools.wraps(stock_get_class)
    def get_class(vllm_config: Any) -> Any:
        if is_dwdp(vllm_config.parallel_config.distributed_executor_backend):
            return _configured_executor(vllm_config)
        return stock_get_class(vllm_config)

    get_class.knows_dwdp = True  # type: ignore[attr-defined]
    Executor.get_class = staticmethod(get_class)


def is_dwdp(backend: Any) -> bool:
    """Whether a `distributed_executor_backend` is this one: its name, its path or its class."""
    if isinstance(backend, type):
        backend = f"{backend.__module__}.{backend.__qualname__}"
    return backend in (BACKEND_NAME, EXECUTOR_PATH)


def _configured_executor(vllm_config: Any) -> Any:
    try:
        from vllm_dwdp.engine import compat

        compat.check_vllm_version()
        from vllm_dwdp.engine.configure import configure
        from vllm_dwdp.engine.executor import DwdpExecutor
    except Exception as error:
        raise RuntimeError(
            f"'--distributed-executor-backend dwdp' can't run here: {error}"
        ) from error
    configure(vllm_config)
    return DwdpExecutor
