# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Signs what ranks write to the start-up store, so that no stranger can slip something in.

The store is plain TCP. With a secret that only the ranks of a job know, each entry carries an HMAC
over its key, its value, and an id of this start, which rank 0 draws. So a stranger's entry doesn't
count, nor does one under another key. Entries aren't encrypted. Other ranks learn the id from the
store: a stranger who has recorded a whole earlier start could play it to them.
"""

import contextlib
import hashlib
import hmac
import ipaddress
import os
from pathlib import Path

from vllm_dwdp.config import ConfigError
from vllm_dwdp.group.errors import SecretMismatch

FILE_VARIABLE = "VLLM_DWDP_SECRET_FILE"
VARIABLE = "VLLM_DWDP_SECRET"
SHORTEST = 16
"""Bytes of the shortest secret that is accepted."""

MARK = b"signed "
DIGEST_CHARACTERS = 64


def read_secret() -> bytes | None:
    """The job's secret, from the file or the environment variable; None if neither is set.

    Raises ConfigError for a file that can't be read, a short secret, and if both are set.
    """
    path, text = os.environ.get(FILE_VARIABLE), os.environ.get(VARIABLE)
    if path is None and text is None:
        return None
    if path is not None and text is not None:
        raise ConfigError(f"expected {FILE_VARIABLE} or {VARIABLE}, got both; unset one of them.")
    try:
        secret = (text or "").encode() if path is None else Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read the secret of {FILE_VARIABLE}: {error}.") from error
    secret = secret.strip()
    if len(secret) < SHORTEST:
        name = VARIABLE if path is None else FILE_VARIABLE
        raise ConfigError(
            f"expected a secret of at least {SHORTEST} bytes from {name}, got {len(secret)}; make "
            "one: openssl rand -hex 32"
        )
    return secret


def is_loopback(host: str) -> bool:
    """Whether only processes of this host reach the address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def reason_unprotected(host: str, *, secret: bytes | None, needs_secret: bool) -> str | None:
    """Why the start-up store may not listen at this address; None if it may.

    needs_secret: whether the user wants a store without a secret refused if others can reach it.
    """
    if secret is not None or not needs_secret or is_loopback(host):
        return None
    return (
        f"the start-up store at {host} can be reached from other hosts, and this rank has no "
        f"secret; give every rank the same {FILE_VARIABLE}, or set dwdp.require_secret to false if "
        "nobody else can reach the store."
    )


class Signer:
    """Signs and checks entries of the store. Without a secret, entries stay as they are.

    start_id: an id of this start, which all entries but the id itself are bound to.
    """

    def __init__(self, secret: bytes | None, start_id: bytes = b"") -> None:
        self._secret = secret
        self._start_id = start_id

    def of_start(self, start_id: bytes) -> "Signer":
        """The signer for entries of the start with this id."""
        return Signer(self._secret, start_id)

    def sign(self, key: str, value: bytes) -> bytes:
        """The entry for this value under this key."""
        if self._secret is None:
            return value
        return MARK + self._digest(self._secret, key, value) + value

    def open(self, key: str, entry: bytes) -> bytes:
        """The value of an entry under this key. Raises SecretMismatch."""
        is_signed = entry.startswith(MARK)
        if self._secret is None:
            if is_signed:
                raise _mismatch(key, "no signature, because this rank has no secret", "one")
            return entry
        if not is_signed:
            raise _mismatch(key, "this job's signature", "none")
        given, value = _split(entry)
        if not hmac.compare_digest(given, self._digest(self._secret, key, value)):
            raise _mismatch(key, "this job's signature", "another")
        return value

    def _digest(self, secret: bytes, key: str, value: bytes) -> bytes:
        message = b"\0".join((key.encode(), self._start_id, value))
        return hmac.new(secret, message, hashlib.sha256).hexdigest().encode()


def _split(entry: bytes) -> tuple[bytes, bytes]:
    signature, value = len(MARK), len(MARK) + DIGEST_CHARACTERS
    return entry[signature:value], entry[value:]


def _mismatch(key: str, expected: str, got: str) -> SecretMismatch:
    return SecretMismatch(
        f"expected '{key}' in the start-up store to have {expected}, got {got}; give every rank "
        f"the same {FILE_VARIABLE}, and keep others away from the store's address."
    )
