# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Messages on the descriptor socket. Each is one SOCK_SEQPACKET packet, so it arrives whole.

    request:   magic | version | kind | parcel | token
    response:  magic | version | status | descriptors left after this packet | text or sizes

The receiver checks a packet's length, magic, version and ranges. Descriptors travel beside the
packet (SCM_RIGHTS), at most 253 at a time, which is the kernel's limit.
"""

import hmac
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from vllm_dwdp.group.errors import ExchangeRefused, PeerBusy

MAGIC = b"DWDP"
VERSION = 1
TOKEN_BYTES = 32
MAX_DESCRIPTORS = 253
MAX_BODY_BYTES = 8 * MAX_DESCRIPTORS
HELLO = 1
PARCEL = 2
STATUS_OK = 0
STATUS_REFUSED = 1
STATUS_BUSY = 2
OVERFLOW_UID = 65534

_REQUEST = struct.Struct(f"!4sHHi{TOKEN_BYTES}s")
_RESPONSE = struct.Struct("!4sHHI")
_CREDENTIALS = struct.Struct("iII")
MAX_PACKET_BYTES = _RESPONSE.size + MAX_BODY_BYTES


class Response(NamedTuple):
    """One packet of an answer.

    num_left: descriptors that follow in later packets. sizes: the bytes of each memory file whose
    descriptor came with this packet.
    """

    num_left: int
    sizes: tuple[int, ...]


def pack_hello(token: bytes) -> bytes:
    return _REQUEST.pack(MAGIC, VERSION, HELLO, 0, token)


def pack_request(parcel: int, token: bytes) -> bytes:
    return _REQUEST.pack(MAGIC, VERSION, PARCEL, parcel, token)


def parse_request(packet: bytes, *, token: bytes, num_parcels: int) -> int | None:
    """The number of the parcel that a request asks for; None for a hello.

    Raises ExchangeRefused, with the reason, for any other packet.
    """
    if len(packet) != _REQUEST.size:
        raise ExchangeRefused(f"expected a request of {_REQUEST.size} bytes, got {len(packet)}")
    magic, version, kind, parcel, given = _REQUEST.unpack(packet)
    _check_protocol(magic, version)
    if not hmac.compare_digest(given, token):
        raise ExchangeRefused("expected the token of this group, got another")
    if kind not in (HELLO, PARCEL):
        raise ExchangeRefused(f"expected a request of kind {HELLO} or {PARCEL}, got {kind}")
    if not 0 <= parcel < num_parcels:
        raise ExchangeRefused(f"expected a parcel in [0, {num_parcels}), got {parcel}")
    return parcel if kind == PARCEL else None


def pack_response(num_left: int, sizes: Sequence[int]) -> bytes:
    body = struct.pack(f"!{len(sizes)}Q", *sizes)
    return _RESPONSE.pack(MAGIC, VERSION, STATUS_OK, num_left) + body


def pack_refusal(reason: str) -> bytes:
    return _pack_text(STATUS_REFUSED, reason)


def pack_busy(reason: str) -> bytes:
    return _pack_text(STATUS_BUSY, reason)


def parse_response(packet: bytes) -> Response:
    """Read one packet of an answer.

    Raises ExchangeRefused with the peer's reason, or with what is wrong with the packet, and
    PeerBusy when the peer may answer a second request.
    """
    if not packet:
        raise ExchangeRefused("expected a response, got the end of the connection")
    if len(packet) < _RESPONSE.size:
        raise ExchangeRefused(f"expected a response of {_RESPONSE.size} bytes, got {len(packet)}")
    magic, version, status, num_left = _RESPONSE.unpack_from(packet)
    _check_protocol(magic, version)
    body = packet[_RESPONSE.size :]
    if status == STATUS_BUSY:
        raise PeerBusy(body.decode(errors="replace"))
    if status != STATUS_OK:
        raise ExchangeRefused(f"the peer refused: {body.decode(errors='replace')}")
    if len(body) % 8:
        raise ExchangeRefused(f"expected whole sizes of 8 bytes, got {len(body)} bytes")
    return Response(num_left, struct.unpack(f"!{len(body) // 8}Q", body))


def reason_not_trusted(peer: socket.socket, expected_uid: int) -> str | None:
    """Why the process at the other end may not take part; None if it may (SO_PEERCRED)."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if pid == 0 or (uid == OVERFLOW_UID and expected_uid != OVERFLOW_UID):
        return "expected a peer in this process and user namespace, got one from another"
    if uid != expected_uid:
        return f"expected a peer of user {expected_uid}, got user {uid}"
    return None


def _check_protocol(magic: bytes, version: int) -> None:
    if (magic, version) != (MAGIC, VERSION):
        raise ExchangeRefused(
            f"expected {MAGIC!r} version {VERSION}, got {magic!r} version {version}"
        )


def _pack_text(status: int, text: str) -> bytes:
    return _RESPONSE.pack(MAGIC, VERSION, status, 0) + text.encode()[:MAX_BODY_BYTES]
