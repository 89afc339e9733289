# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The entry point of the plugin, which every vLLM process on the machine imports.

* `register()` never raises: an exception here would end every vLLM command.
* It wraps two methods of vLLM. `Executor.get_class` looks executor names up. Before that,
  `ParallelConfig.__post_init__` reads the environment. For users who don't select dwdp both do what
  they do without the plugin.
* It wraps a function of Transformers: processes copy a model's own Python files in turn. That runs
  before any option of vLLM is known, so it holds for all users.
* A user who selects dwdp where it can't run gets the reason at once.
"""

import functools
import importlib
import sys
from typing import Any

BACKEND_NAME = "dwdp"
EXECUTOR_PATH = "vllm_dwdp.engine.worker.executor.DwdpExecutor"


def register() -> None:
    """Called once by vLLM in every process (entry point group `vllm.general_plugins`)."""
    try:
        _wrap_executor_lookup()
        _wrap_parallel_config()
        _wrap_remote_code()
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


def _wrap_parallel_config() -> None:
    from vllm.config import ParallelConfig

    stock_post_init = ParallelConfig.__post_init__
    if getattr(stock_post_init, "knows_dwdp", False):
        return

    @functools.wraps(stock_post_init)
    def post_init(parallel_config: Any) -> None:
        if is_dwdp(parallel_config.distributed_executor_backend) or _is_in_command():
            _import("setup.environment").check_data_parallel()
        stock_post_init(parallel_config)

    post_init.knows_dwdp = True  # type: ignore[attr-defined]
    ParallelConfig.__post_init__ = post_init


def _wrap_remote_code() -> None:
    from vllm_dwdp.engine.setup.remote_code import copy_in_turn

    copy_in_turn()


def is_dwdp(backend: Any) -> bool:
    """Whether a `distributed_executor_backend` is this one: its name, its path or its class."""
    if isinstance(backend, type):
        backend = f"{backend.__module__}.{backend.__qualname__}"
    return backend in (BACKEND_NAME, EXECUTOR_PATH)


def _is_in_command() -> bool:
    """Whether the command line selects dwdp; vLLM makes a ParallelConfig before it parses that."""
    return any(is_dwdp(argument.rpartition("=")[2]) for argument in sys.argv[1:])


def _configured_executor(vllm_config: Any) -> Any:
    executor = _import("worker.executor").DwdpExecutor
    _import("setup.configure").configure(vllm_config)
    _import("metrics.poller").poll_from_front_ends()
    return executor


def _import(module: str) -> Any:
    """A module of vllm_dwdp.engine. Raises RuntimeError with the reason if dwdp can't run here."""
    try:
        from vllm_dwdp.engine import compat

        compat.check_vllm_version()
        return importlib.import_module(f"vllm_dwdp.engine.{module}")
    except Exception as error:
        raise RuntimeError(
            f"'--distributed-executor-backend dwdp' can't run here: {error}"
        ) from error
