# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What can go wrong while a group meets. Every message names the rank and the cause."""


class GroupError(RuntimeError):
    """The group can't start."""


class RankFailed(GroupError):
    """A rank failed, died or did not arrive; every rank raises this with the same sentence."""


class RendezvousRefused(GroupError):
    """The rendezvous address is taken, or belongs to something else than this job."""


class StoreLost(GroupError):
    """The process that hosts the store ended or stopped answering; the message names it."""


class ManifestMismatch(GroupError):
    """Two ranks were started with different models or options."""


class PeersUnreachable(GroupError):
    """A rank can't map the memory of another; every rank raises this with the same sentence."""


class ExchangeRefused(GroupError):
    """A peer refused to hand over memory, or sent something else than expected."""


class PeerBusy(GroupError):
    """A peer can't send descriptors just now: too many are in flight. Ask again."""
