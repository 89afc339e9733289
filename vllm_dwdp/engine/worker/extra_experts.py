# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets a rank keep copies of the experts that its tokens choose most, see `extra_expert_bytes`.

A run counts which experts are chosen, and saves the counts every ten seconds and when it ends. The
next run of the same model chooses by them, when it starts.
"""

import hashlib
import json
import sys
import threading
from pathlib import Path
from typing import Any

from vllm import envs
from vllm.logger import init_logger

from vllm_dwdp.config import DwdpConfig
from vllm_dwdp.engine.moe.context import MoeContext
from vllm_dwdp.group.session import Gather
from vllm_dwdp.layout.extra_experts import PageRun, choose_pages, with_extra_experts
from vllm_dwdp.layout.rank_layout import RankLayout
from vllm_dwdp.memory.limits import most_extra_experts
from vllm_dwdp.rank.counts_file import CountsFile
from vllm_dwdp.rank.expert_counts import ExpertCounts

logger = init_logger("vllm.dwdp")

SAVE_INTERVAL_S = 10.0
"""vLLM may kill a rank five seconds after it was told to end, before it has saved its counts."""


class ExtraExperts:
    """The extra experts of one rank, whose layers are built. job_rank: its number in the job."""

    def __init__(
        self, config: DwdpConfig, context: MoeContext, model_config: Any, *, job_rank: int
    ) -> None:
        self._num_bytes = config.extra_expert_bytes
        self._context = context
        self._num_experts = [layer.global_num_experts for layer in context.layers]
        self._is_stopped = threading.Event()
        self._has_failed = False
        folder = counts_folder(model_config)
        self._file = CountsFile(folder, rank=job_rank, num_experts=self._num_experts)

    def add_to(self, layout: RankLayout, gather: Gather, *, is_on_host: bool) -> RankLayout:
        """Choose this rank's extra experts, and lay out the copies of all ranks of the group.

        Every rank of the group calls this. is_on_host: whether ranks share host memory.
        """
        wishes = self._wishes(layout, is_on_host=is_on_host) if self._num_bytes else []
        found = gather("extra experts", json.dumps(wishes).encode())
        return with_extra_experts(layout, [json.loads(data) for data in found])

    def count(self, device_type: str) -> None:
        """Count from now on which experts tokens choose, if the option asks for it."""
        if not self._num_bytes:
            return
        hidden = [layer for layer in self._context.layers if layer.quant_method.is_monolithic]
        if hidden:
            logger.warning(
                "%s: its kernel keeps the router's choice to itself, so dwdp can't count which "
                "experts are chosen; drop dwdp.extra_expert_bytes, or choose another kernel with "
                "--moe-backend.",
                hidden[0].layer_name,
            )
            return
        self._context.expert_counts = ExpertCounts(self._num_experts, device_type)

    def begin_serving(self) -> None:
        """Begin the counts again, after steps that no user asked for, and save them from now on."""
        if (counts := self._context.expert_counts) is not None:
            counts.clear()
            threading.Thread(target=self._save_often, name="dwdp-counts", daemon=True).start()

    def stop(self) -> None:
        """Save the counts a last time."""
        self._is_stopped.set()
        self._save()

    def _save_often(self) -> None:
        """Save again and again, until `stop` is called."""
        while not self._is_stopped.wait(SAVE_INTERVAL_S):
            self._save()

    def _save(self) -> None:
        """Save the counts. A failure is logged once, because it concerns the next run only."""
        if (counts := self._context.expert_counts) is None or self._has_failed:
            return
        try:
            self._file.save(counts.read())
        except Exception as error:  # the GPU's driver may raise anything
            self._has_failed = True
            logger.warning("dwdp can't save which experts were chosen: %s", error)

    def _wishes(self, layout: RankLayout, *, is_on_host: bool) -> list[PageRun]:
        if (counts := self._file.load()) is None:
            logger.info(
                "extra_expert_bytes: no earlier run has counted which experts are chosen; this run "
                "counts them, and keeps no extra experts."
            )
            return []
        most = most_extra_experts(layout) if is_on_host else sys.maxsize
        wishes = choose_pages(layout, counts, num_bytes=self._num_bytes, max_experts=most)
        num_bytes = sum(run[-1] for run in wishes)
        logger.info(
            "extra_expert_bytes: this rank keeps copies of %.1f of the %.1f MiB of experts that it "
            "lacks, those chosen most in earlier runs.",
            num_bytes / 2**20,
            layout.all_missing_bytes / 2**20,
        )
        return wishes


def counts_folder(model_config: Any) -> Path:
    """The folder for a model's counts, in vLLM's cache (VLLM_CACHE_ROOT)."""
    named = f"{model_config.model} {model_config.revision}"
    key = hashlib.blake2b(named.encode(), digest_size=8).hexdigest()
    return Path(envs.VLLM_CACHE_ROOT) / "dwdp" / "expert_counts" / key
