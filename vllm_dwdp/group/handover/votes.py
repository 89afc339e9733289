# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The votes of all ranks on whether each pair can share memory, made into one sentence."""

from collections.abc import Sequence

MAX_NAMED_PAIRS = 16
Vote = dict[int, str | None]
"""By a peer's rank in the job: why the voting rank can't read its memory, None if it can."""


def reason_against(votes: Sequence[Vote], job_ranks: Sequence[int], *, by: str) -> str | None:
    """One sentence, the same on every rank, that names the pairs that can't share memory.

    None if all pairs can. votes: the vote of each rank of `job_ranks`. by: the type of handle.
    """
    failed = [
        (rank, peer, reason)
        for rank, vote in zip(job_ranks, votes, strict=True)
        for peer, reason in vote.items()
        if reason is not None
    ]
    if not failed:
        return None
    rank, peer, reason = failed[0]
    pairs = ", ".join(f"{peer}->{rank}" for rank, peer, _ in failed[:MAX_NAMED_PAIRS])
    more = f" and {len(failed) - MAX_NAMED_PAIRS} more" if len(failed) > MAX_NAMED_PAIRS else ""
    return (
        f"dwdp rank {rank} can't read the memory of rank {peer} by {by}: {reason} "
        f"(pairs that can't: {pairs}{more}, of {len(votes) * (len(votes) - 1)})"
    )
