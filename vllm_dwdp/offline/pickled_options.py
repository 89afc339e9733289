# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The options of an LLM on their way to its ranks, with classes and functions of the user's script.

A rank imports the script, as multiprocessing makes its processes do, and has a copy of what the
script defines. vLLM pickles the options again for the rank's engine, which works only with that
copy. A notebook can't be imported: ranks then get its definitions by value.
"""

import contextlib
import io
import operator
import sys
from types import FunctionType
from typing import Any, NamedTuple

import cloudpickle

from vllm_dwdp.offline.parcels import unpacked


class PickledOptions(NamedTuple):
    """Definitions of the script as their names, and as copies; None if those don't pickle."""

    by_name: bytes
    by_value: bytes | None

    @classmethod
    def of(cls, options: dict[str, Any]) -> "PickledOptions":
        """Raises what pickle raises for options that can't be sent to a process."""
        by_value = None
        with contextlib.suppress(Exception):
            by_value = cloudpickle.dumps(options)
        return cls(_dumps_by_name(options), by_value)

    def load(self) -> dict[str, Any]:
        """In a rank: with its own definitions, if it has all of them. Raises TypeError."""
        try:
            found = unpacked(self.by_name, what="an option of the LLM")
        except TypeError:
            if self.by_value is None:
                raise
            found = unpacked(self.by_value, what="an option of the LLM")
        return dict(found)


class _PicklerByName(cloudpickle.Pickler):
    """Cloudpickle, except that definitions of the script are named, as pickle does it."""

    def reducer_override(self, thing: Any) -> Any:
        return NotImplemented if _is_defined_by_script(thing) else super().reducer_override(thing)


def _dumps_by_name(options: dict[str, Any]) -> bytes:
    with io.BytesIO() as file:
        _PicklerByName(file).dump(options)
        return file.getvalue()


def _is_defined_by_script(thing: Any) -> bool:
    if not isinstance(thing, type | FunctionType) or thing.__module__ != "__main__":
        return False
    try:
        return operator.attrgetter(thing.__qualname__)(sys.modules["__main__"]) is thing
    except AttributeError:
        return False
