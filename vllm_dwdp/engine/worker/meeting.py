# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Finds the rendezvous at which a vLLM rank meets the ranks of its own job, and no others.

Ranks that one command started agree on a port as they start, so that two jobs that start at once
can't choose the same one. Ranks of several commands use the port that the user gave to all.
"""

from typing import Any

from vllm_dwdp.engine.parent_watch import end_for_good
from vllm_dwdp.engine.setup import last_words
from vllm_dwdp.engine.setup import settings as job
from vllm_dwdp.group.errors import RankFailed
from vllm_dwdp.group.meet import job_board
from vllm_dwdp.group.meet.rendezvous import Rendezvous
from vllm_dwdp.group.meet.secret import read_secret


def rendezvous(vllm_config: Any, settings: job.Settings, *, one_host: bool) -> Rendezvous:
    """This rank's place at the rendezvous of its group; called in the worker's process."""

    def end_rank(sentence: str) -> None:
        last_words.leave(parallel, RankFailed(sentence), job_rank=job_rank)
        end_for_good()

    job_rank = job.job_rank(vllm_config, settings)
    config, parallel = job.user_config(vllm_config), vllm_config.parallel_config
    endpoint = job.endpoint(vllm_config, settings, one_host=one_host)
    notice = None
    # An engine that Ray starts may not be able to reach the board of the command.
    if (
        settings.is_one_command
        and not config.rendezvous
        and parallel.data_parallel_backend != "ray"
    ):
        endpoint = endpoint._replace(port=0)
        notice = job_board.BoardNotice(job_board.board_of(parallel))
    return Rendezvous(
        endpoint=endpoint,
        job_rank=job_rank,
        job_size=settings.job_size,
        dwdp_size=settings.dwdp_size,
        timeout_s=config.timeout_s,
        one_host=one_host,
        job_id=job_board.job_id_of(parallel) if settings.is_one_command else "",
        notice=notice,
        secret=read_secret(),
        needs_secret=config.require_secret,
        store_ranks=settings.store_ranks(job_rank),
        end_rank=end_rank,
    )
