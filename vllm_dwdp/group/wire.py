# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Messages on the descriptor socket: one SOCK_SEQPACKET packet each, so none can be half-read.

    request:   magic | version | layer index | token
    response:  magic | version | status | descriptors left after this packet | text or sizes

Everything that arrives is checked: length, magic, version, ranges. Descriptors travel beside the
packet (SCM_RIGHTS), at most 253 at a time, which is the kernel's limit.
"""

import hmac
import socket
import struct
from typing import NamedTuple

from vllm_dwdp.group.errors import ExchangeRefused

MAGIC = b"DWDP"
VERSION = 1
TOKEN_BYTES = 32
MAX_DESCRIPTORS = 253
MAX_BODY_BYTES = 8 * MAX_DESCRIPTORS
STATUS_OK = 0
STATUS_REFUSED = 1

_REQUEST = struct.Struct(f"!4sHi{TOKEN_BYTES}s")
_RESPONSE = struct.Struct("!4sHHI")
MAX_PACKET_BYTES = _RESPONSE.size + MAX_BODY_BYTES
_CREDENTIALS = struct.Struct("iII")
OVERFLOW_UID = 65534


class Response(NamedTuple):
    """One packet of an answer; sizes are the bytes of the descriptors that came with it."""

    num_left: int
    sizes: tuple[int, ...]


def pack_request(layer_idx: int, token: bytes) -> bytes:
    return _REQUEST.pack(MAGIC, VERSION, layer_idx, token)


def parse_request(packet: bytes, *, token: bytes, num_layers: int) -> int:
    """The layer index asked for; raises ExchangeRefused with the reason for anything else."""
    if len(packet) != _REQUEST.size:
        raise ExchangeRefused(f"expected a request of {_REQUEST.size} bytes, got {len(packet)}")
    magic, version, layer_idx, given = _REQUEST.unpack(packet)
    if (magic, version) != (MAGIC, VERSION):
        raise ExchangeRefused(f"expected {MAGIC!r} version {VERSION}, got {magic!r} {version}")
    if not hmac.compare_digest(given, token):
        raise ExchangeRefused("expected the token of this group, got another")
    if not 0 <= layer_idx < num_layers:
        raise ExchangeRefused(f"expected a layer index below {num_layers}, got {layer_idx}")
    return int(layer_idx)


def pack_response(num_left: int, sizes: tuple[int, ...]) -> bytes:
    body = struct.pack(f"!{len(sizes)}Q", *sizes)
    return _RESPONSE.pack(MAGIC, VERSION, STATUS_OK, num_left) + body


def pack_refusal(reason: str) -> bytes:
    text = reason.encode()[:MAX_BODY_BYTES]
    return _RESPONSE.pack(MAGIC, VERSION, STATUS_REFUSED, 0) + text


def parse_response(packet: bytes) -> Response:
    """Raises ExchangeRefused with the peer's reason, or with what is wrong with the packet."""
    if len(packet) < _RESPONSE.size:
        raise ExchangeRefused(
            f"expected a response of at least {_RESPONSE.size} bytes, got {len(packet)}; "
            "the peer closed the connection"
        )
    magic, version, status, num_left = _RESPONSE.unpack_from(packet)
    body = packet[_RESPONSE.size :]
    if (magic, version) != (MAGIC, VERSION):
        raise ExchangeRefused(f"expected {MAGIC!r} version {VERSION}, got {magic!r} {version}")
    if status != STATUS_OK:
        raise ExchangeRefused(f"the peer refused: {body.decode(errors='replace')}")
    if len(body) % 8:
        raise ExchangeRefused(f"expected whole sizes of 8 bytes, got {len(body)} bytes")
    return Response(num_left, struct.unpack(f"!{len(body) // 8}Q", body))


def reason_not_trusted(peer: socket.socket, expected_uid: int) -> str | None:
    """Why the process at the other end may not take part, or None (SO_PEERCRED)."""
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if pid == 0 or (uid == OVERFLOW_UID and expected_uid != OVERFLOW_UID):
        return "expected a peer in this process and user namespace, got one from another"
    if uid != expected_uid:
        return f"expected a peer of user {expected_uid}, got user {uid}"
    return None
