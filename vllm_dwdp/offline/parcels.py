# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Parcels: prompts and outputs on their way between the caller and a rank, each pickled by itself.

A message with parcels can always be unpickled. If a parcel can't be unpickled, only its own prompt
fails, whatever exception its class raises.
"""

import pickle
from typing import Any, NamedTuple

import cloudpickle

WHERE_TO_DEFINE = (
    "define its class where every rank imports it: in a module, or in the script outside "
    "`if __name__ == '__main__':`."
)


class Answer(NamedTuple):
    """The outcome of one item: a result, or an exception if `is_error`."""

    item_id: int
    is_error: bool
    content: Any


def packed(content: Any) -> bytes:
    """Pickle the content. Raises TypeError if it doesn't pickle, or what its class raises."""
    try:
        return pickle.dumps(content)
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"expected prompts and options that pickle: {error}.") from error


def packed_call(name: str, args: Any, kwargs: Any) -> bytes:
    """A parcel of a call, whose arguments may be local functions, as vLLM takes them."""
    try:
        return bytes(cloudpickle.dumps((name, args, kwargs)))
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"expected arguments that pickle: {error}.") from error


def unpacked(parcel: bytes, *, what: str) -> Any:
    """Unpickle a parcel. Raises TypeError that says what can't be read (`what`), and why."""
    try:
        return pickle.loads(parcel)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise TypeError(f"{what} can't be read: {reason}; {WHERE_TO_DEFINE}") from error


def result(item_id: int, content: Any) -> Answer:
    """An answer with the parcel of a result, or of the error if the result doesn't pickle."""
    try:
        return Answer(item_id, False, packed(content))
    except Exception as error:
        return refusal(item_id, error)


def refusal(item_id: int, error: Exception) -> Answer:
    return Answer(item_id, True, packed(_sendable(error)))


def opened(answer: Answer) -> Answer:
    """The answer with its parcel unpickled, or with the error if the parcel can't be read."""
    try:
        return answer._replace(content=unpacked(answer.content, what="the answer of a rank"))
    except TypeError as error:
        return Answer(answer.item_id, True, error)


def _sendable(error: Exception) -> Exception:
    """The exception itself if it survives pickling, else one of its built-in base class."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    known = (ValueError, TypeError, KeyError, NotImplementedError)
    kind = next((kind for kind in known if isinstance(error, kind)), RuntimeError)
    return kind(f"{type(error).__name__}: {error}")
