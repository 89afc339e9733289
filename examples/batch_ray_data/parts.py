# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The output folder of a batch job: parts of finished rows, which are joined at the end."""

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

RowId = int | str


class Parts:
    """Files of finished rows in one folder. A row is a line of JSON with an `id`.

    A part gets its name once it is on the disk, so that a job that is killed leaves whole parts.

    job: what the outputs depend on. Raises ValueError if the folder is of another job.
    """

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        self._folder = folder / "parts"
        self._joined = folder / "outputs.jsonl"
        self._folder.mkdir(parents=True, exist_ok=True)
        noted = folder / "job.json"
        if not noted.exists():
            _write(noted, [json.dumps(job)])
        elif (before := json.loads(noted.read_text())) != job:
            raise ValueError(f"{folder} has outputs of another job; expected {job}, got {before}.")

    def add(self, lines: Iterable[str]) -> None:
        """Keep finished rows; they are on the disk when this returns."""
        _write(self._folder / f"{uuid.uuid4().hex}.jsonl", lines)

    def ids(self) -> set[RowId]:
        """The ids of all finished rows."""
        return {row["id"] for row in self._rows()}

    def join(self) -> tuple[Path, int]:
        """Write all finished rows to one file, sorted by id: numbers first, then text.

        Returns its path, and how many rows have an error. A row that two jobs have run at the
        same time is in it once.
        """
        rows = {row["id"]: row for row in self._rows()}
        in_order = sorted(rows, key=lambda row_id: (isinstance(row_id, str), row_id))
        _write(self._joined, (json.dumps(rows[row_id]) for row_id in in_order))
        return self._joined, sum(row["error"] is not None for row in rows.values())

    def _rows(self) -> Iterator[dict[str, Any]]:
        for part in sorted(self._folder.glob("*.jsonl")):
            yield from map(json.loads, part.read_text(encoding="utf-8").splitlines())


def _write(path: Path, lines: Iterable[str]) -> None:
    """Write a file that is there with all its lines or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as out:
        out.writelines(f"{line}\n" for line in lines)
        out.flush()
        os.fsync(out.fileno())
    unfinished.replace(path)
