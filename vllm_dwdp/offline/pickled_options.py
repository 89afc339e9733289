# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Pickles the options of an LLM for its ranks, with classes and functions of the user's script.

* A rank's process imports the script, as multiprocessing does for every process that it spawns. So
  the rank has its own copies of the script's definitions, and the options name them.
* vLLM pickles the options again for the rank's engine, which works only with those copies.
* A notebook can't be imported. Its definitions are therefore pickled by value, too.
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
    """The same options, pickled twice: with the script's definitions by name, and by value.

    by_value: None if the definitions don't pickle by value.
    """

    by_name: bytes
    by_value: bytes | None

    @classmethod
    def of(cls, options: dict[str, Any]) -> "PickledOptions":
        """Pickle options; raises what pickle raises if they can't be sent to a process."""
        by_value = None
        with contextlib.suppress(Exception):
            by_value = cloudpickle.dumps(options)
        return cls(_dumps_by_name(options), by_value)

    def load(self) -> dict[str, Any]:
        """Unpickle in a rank: by name if the rank has all definitions, else by value.

        Raises TypeError.
        """
        try:
            found = unpacked(self.by_name, what="an option of the LLM")
        except TypeError:
            if self.by_value is None:
                raise
            found = unpacked(self.by_value, what="an option of the LLM")
        return dict(found)


class _PicklerByName(cloudpickle.Pickler):
    """Cloudpickle, except that it pickles definitions of the script by name, as pickle does."""

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
