# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a rank tells its peers about its memory, so that no type of handle is tried in vain."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_dwdp._core import HandleType
from vllm_dwdp.group.meet.process_identity import ProcessIdentity


@dataclass(frozen=True)
class Offer:
    """A rank's process, and why its memory can't be shared by each type of handle.

    obstacles: see MemoryDriver.obstacles.
    """

    identity: ProcessIdentity
    obstacles: Mapping[HandleType, str | None]

    def to_bytes(self) -> bytes:
        obstacles = {handle_type.name: text for handle_type, text in self.obstacles.items()}
        identity = self.identity.to_bytes().decode()
        return json.dumps({"identity": identity, "obstacles": obstacles}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Offer":
        fields = json.loads(data)
        obstacles = {HandleType[name]: text for name, text in fields["obstacles"].items()}
        return cls(ProcessIdentity.from_bytes(fields["identity"].encode()), obstacles)

    def obstacle(self, peer: "Offer", handle_type: HandleType) -> str | None:
        """Why this rank can't map a peer's memory by this type of handle; None if it may work."""
        for offer in (self, peer):
            if obstacle := offer.obstacles[handle_type]:
                return f"{obstacle} (host {offer.identity.host})"
        if handle_type is HandleType.FILE_DESCRIPTOR:
            return self.identity.reason_not_reachable(peer.identity)
        return None
