# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Errors of a group's start-up. Every message names the rank and the cause."""


class GroupError(RuntimeError):
    """The group can't start."""


class RankFailed(GroupError):
    """A rank failed, died, hung or did not arrive. Every rank raises the same sentence."""


class RendezvousRefused(GroupError):
    """The rendezvous address is taken, or a program other than this job listens there."""


class StoreLost(GroupError):
    """The process that hosts the store ended or stopped answering; the message names it."""


class SecretMismatch(StoreLost):
    """An entry of the store isn't signed with this rank's secret, so the store is of no use."""


class ManifestMismatch(GroupError):
    """Two ranks were started with different models or options."""


class PeersUnreachable(GroupError):
    """A rank can't map the memory of another. Every rank raises the same sentence."""


class ExchangeRefused(GroupError):
    """A peer refused to hand over memory, or sent something unexpected."""


class PeerBusy(GroupError):
    """A peer can't send descriptors now: too many are in flight. A later request may succeed."""
