# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Keeps the counts of chosen experts from one run of a model to the next, a file for each rank."""

import json
import logging
import tempfile
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

logger = logging.getLogger("vllm.dwdp")

Counts = list[list[int]]
"""By layer and by expert, how often tokens chose the expert."""


class CountsFile:
    """The file of one rank, in the folder of its model.

    folder: it need not exist. rank: in the job. num_experts: of each layer.
    """

    def __init__(self, folder: Path, *, rank: int, num_experts: Sequence[int]) -> None:
        self._folder = folder
        self._path = folder / f"rank-{rank}.json"
        self._num_experts = list(num_experts)
        self._saving = threading.Lock()

    def load(self) -> Counts | None:
        """The counts that this rank has saved, or else those of all other ranks together.

        None if there are none.
        """
        if (own := self._load(self._path)) is not None:
            return own
        paths = sorted(set(self._folder.glob("rank-*.json")) - {self._path})
        others = (self._load(path) for path in paths)
        return _sum([counts for counts in others if counts is not None])

    def save(self, counts: Counts) -> None:
        """Save what this run has counted until now; what it saved before is replaced.

        Counts of earlier runs are added, with half the weight for each run since. A run without
        tokens changes nothing. Any thread may call this. Raises OSError.
        """
        if not any(map(any, counts)):
            return
        with self._saving:
            summed = _sum([counts, self._halves]) if self._halves else counts
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False) as file:
                file.write(json.dumps(summed))
            Path(file.name).replace(self._path)

    @cached_property
    def _halves(self) -> Counts | None:
        """Half of what this rank's earlier runs have counted."""
        earlier = self._load(self._path)
        return earlier and [[count // 2 for count in layer] for layer in earlier]

    def _load(self, path: Path) -> Counts | None:
        found: Any
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            found = error
        if self._is_valid(found):
            return list(found)
        logger.warning(
            "expected counts of chosen experts in %s, for layers with %s experts, got something "
            "else; they are ignored. Delete the file.",
            path,
            sorted(set(self._num_experts)),
        )
        return None

    def _is_valid(self, found: Any) -> bool:
        if not isinstance(found, list) or not all(isinstance(layer, list) for layer in found):
            return False
        is_counted = all(type(count) is int and count >= 0 for layer in found for count in layer)
        return is_counted and list(map(len, found)) == self._num_experts


def _sum(found: Sequence[Counts]) -> Counts | None:
    if not found:
        return None
    return [
        [sum(of_expert) for of_expert in zip(*layers, strict=True)]
        for layers in zip(*found, strict=True)
    ]
