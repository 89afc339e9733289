# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How prompts and outputs travel between the caller and a rank: each is pickled by itself.

A message with parcels can always be read. A parcel that can't be read costs the call its own prompt
and nothing else, whatever its class raises.
"""

import pickle
from typing import Any, NamedTuple

WHERE_TO_DEFINE = (
    "define its class where every rank imports it: in a module, or in the script outside "
    "`if __name__ == '__main__':`."
)


class Answer(NamedTuple):
    """What became of one item; the content is an exception if `is_error`."""

    item_id: int
    is_error: bool
    content: Any


def packed(content: Any) -> bytes:
    """Raises TypeError for what doesn't pickle, or what its class raises."""
    try:
        return pickle.dumps(content)
    except (pickle.PicklingError, AttributeError) as error:
        raise TypeError(f"expected prompts and options that pickle: {error}.") from error


def unpacked(parcel: bytes, *, what: str) -> Any:
    """The content; raises TypeError with what can't be read, and why."""
    try:
        return pickle.loads(parcel)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise TypeError(f"{what} can't be read: {reason}; {WHERE_TO_DEFINE}") from error


def result(item_id: int, content: Any) -> Answer:
    """The parcel of an item's result, or of the error if that doesn't pickle."""
    try:
        return Answer(item_id, False, packed(content))
    except Exception as error:
        return refusal(item_id, error)


def refusal(item_id: int, error: Exception) -> Answer:
    return Answer(item_id, True, packed(_sendable(error)))


def opened(answer: Answer) -> Answer:
    """With the content of its parcel, or with the error if that can't be read."""
    try:
        return answer._replace(content=unpacked(answer.content, what="the answer of a rank"))
    except TypeError as error:
        return Answer(answer.item_id, True, error)


def _sendable(error: Exception) -> Exception:
    """The exception itself, where it survives a pipe; else one of a built-in class that it has."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    known = (ValueError, TypeError, KeyError, NotImplementedError)
    kind = next((kind for kind in known if isinstance(error, kind)), RuntimeError)
    return kind(f"{type(error).__name__}: {error}")
