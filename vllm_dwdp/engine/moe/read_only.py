# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Refuses writes to bound expert weights with an error; a plain write would be a memory fault."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from vllm_dwdp.engine.moe.kernel.expert_rows import num_spanned

REFUSED_CALL = (
    "'{name}' would write to expert weights, or free them, but the dwdp group shares them "
    "read-only; restart the ranks instead."
)
REFUSED_SAVE = (
    "'{name}' needs expert weights that it could write to, but the dwdp group shares them "
    "read-only; copy the checkpoint that was loaded, or save from an engine of stock vLLM."
)
REPLACED = (
    "{name} of a dwdp layer would be replaced, but its kernel reads the group's shared experts; "
    "restart the ranks to load others."
)


class ReadOnlyWeight(RuntimeError):
    """A call would write to, free, replace or save expert weights that the group shares."""


def refuse_call(name: str) -> NoReturn:
    """Refuse a call that vLLM's front-end makes of an engine or a worker."""
    raise ReadOnlyWeight(REFUSED_CALL.format(name=name))


def refuse_save(name: str) -> NoReturn:
    """Refuse a call that saves the model.

    vLLM asks for writable addresses of the weights then, and all ranks would write the same files.
    """
    raise ReadOnlyWeight(REFUSED_SAVE.format(name=name))


class ReadOnlyParameter(torch.Tensor):
    """A parameter over read-only memory: reading works, writing raises ReadOnlyWeight.

    PyTorch itself guards the storage, and so all aliases of it; this class gives the reason in its
    error. PyTorch's operators can read the parameter. Kernels that ask for a mutable pointer can't.
    """

    # Makes this an instance of Parameter. A subclass of Parameter would lose __torch_function__.
    _is_param = True

    @classmethod
    def over(cls, view: torch.Tensor, like: torch.nn.Parameter) -> "ReadOnlyParameter":
        """Make one over an alias of `view`; vLLM's loaders find the attributes of `like` on it."""
        flat = view.detach().as_strided((num_spanned(view.shape, view.stride()),), (1,))
        alias = torch.from_dlpack(flat.view(torch.uint8)).view(view.dtype)
        alias = alias.as_strided(view.shape, view.stride())
        torch._C._set_throw_on_mutable_data_ptr(alias)
        made = alias.as_subclass(cls)
        vars(made).update(vars(like))
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func == torch.Tensor.data.__set__:
            raise ReadOnlyWeight(REPLACED.format(name="a parameter"))
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except RuntimeError as error:
            if "data pointer" not in str(error):
                raise
            raise ReadOnlyWeight(
                f"{getattr(func, '__name__', func)} asked for writable expert weights, the dwdp "
                "group shares them read-only; clone them, or restart the ranks to load others."
            ) from error
