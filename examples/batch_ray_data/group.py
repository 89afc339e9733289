# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A group of DWDP ranks as a worker of Ray Data. A row that it can't run costs only itself.

Importing this doesn't import vLLM, so that the process that only hands out rows needn't load it.
"""

import json
from typing import Any

from vllm_dwdp import PromptsFailed

LINE = "text"
"""The column of rows, each as a line of JSON; ray.data.read_text calls it so."""


class Group:
    """One whole group of ranks. Ray Data makes it in an actor, and calls it with batches.

    options: those of vllm_dwdp.LLM. Raises RankDied if the group can't be started.
    """

    def __init__(self, options: dict[str, Any], max_tokens: int) -> None:
        from vllm import SamplingParams

        self._options = options
        self._params = SamplingParams(temperature=0, max_tokens=max_tokens)
        self._llm = _started(options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Run a batch of rows. The result has a row for each, with its text or its error."""
        rows = [json.loads(line) for line in batch[LINE]]
        return {LINE: [json.dumps(finished) for finished in self._run(rows)]}

    def _run(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run rows; returns what became of each, in order.

        One prompt can end a call for all: if vLLM refuses it, or if it is among those that end the
        last rank. Such a call is tried again in halves, down to a row that fails alone.
        """
        llm = self._whole_group()
        prompts = tuple(row.get("prompt") for row in rows)  # vLLM takes a list of numbers for one
        try:
            outputs = llm.generate(prompts, self._params, use_tqdm=False)
            return _finished(rows, outputs)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if type(error) is PromptsFailed:  # its subclass says that no rank is left
                return _finished(rows, error.outputs, reason)
            if len(rows) == 1:
                return _finished(rows, [None], reason)
        half = len(rows) // 2
        return self._run(rows[:half]) + self._run(rows[half:])

    def _whole_group(self) -> Any:
        """The LLM with all its ranks. It is started again if some of them have ended."""
        if len(self._llm.dwdp_stats()) < self._options["data_parallel_size"]:
            self._llm.shutdown()
            self._llm = _started(self._options)
        return self._llm


def _started(options: dict[str, Any]) -> Any:
    from vllm_dwdp import LLM

    return LLM(**options)


def _finished(rows: list[dict[str, Any]], outputs: list[Any], reason: str = "") -> list[Any]:
    """Rows of the output. reason: why rows failed; they have None in place of an output."""
    return [
        {"id": row["id"], "text": None, "token_ids": None, "error": reason}
        if output is None
        else {
            "id": row["id"],
            "text": output.outputs[0].text,
            "token_ids": list(output.outputs[0].token_ids),
            "error": None,
        }
        for row, output in zip(rows, outputs, strict=True)
    ]
