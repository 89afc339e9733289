# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The batch job with Ray Data: stock vLLM's tokens, bad rows that cost only themselves, a kill.

It takes seven minutes on two cores that are busy with other work, and is skipped without Ray Data.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deadly_prompt import TOKEN
from support import leftovers

pytest.importorskip("ray", reason="pip install ray[data]")
pyarrow = pytest.importorskip("pyarrow", reason="pip install ray[data]")
pytest.importorskip("pyarrow.parquet")

pytestmark = [pytest.mark.slow, pytest.mark.ray]
BATCH = Path(__file__).resolve().parents[3] / "examples" / "batch_ray_data" / "batch.py"
REFUSED = {
    "empty": {"prompt": ""},
    "long": {"prompt": "and " * 2000},
    "missing": {},
    "number": {"prompt": 7},
}
DEADLY = {"deadly": {"prompt": [TOKEN, 8, 9]}}
END_S = 60
ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parents[1]),  # of deadly_prompt
    "RAY_memory_monitor_refresh_ms": "0",  # or Ray ends actors for the memory of other programs
    "RAY_worker_niceness": "0",
}


@pytest.fixture
def job(demo_model, tmp_path):
    """Starts the job on rows, in a session of its own; gives its process and its folder."""
    started = []

    def start(rows, write=write_jsonl, **llm):
        file, folder = write(tmp_path, rows), tmp_path / "folder"
        options = {"max_model_len": 512, "enforce_eager": True, **llm}
        command = [sys.executable, "-I", "-X", "utf8", BATCH, file, folder, "--model", demo_model]
        command += ["--max-tokens", "16", "--batch-size", "8", "--llm", json.dumps(options)]
        with (tmp_path / "log").open("a") as log:
            started.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    env=os.environ | ENVIRONMENT,
                    start_new_session=True,
                )
            )
        return started[-1], folder

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    print((tmp_path / "log").read_text()[-4000:])
    assert_all_end()


def test_tokens_are_stock_vllms_and_a_bad_row_costs_only_itself(job, stock_eager):
    prompts = [output["prompt"] for output in stock_eager["outputs"]]
    rows = [{"id": index, "prompt": prompt} for index, prompt in enumerate(prompts)]
    bad = [{"id": name, **row} for name, row in (REFUSED | DEADLY).items()]
    mixed = [*rows[40:], *bad, *rows[:40]]
    process, folder = job(mixed, max_in_flight=1, logits_processors=["deadly_prompt:DeadlyPrompt"])
    assert process.wait(400) == 0
    outputs = read(folder / "outputs.jsonl")
    assert [row["id"] for row in outputs] == [*range(len(rows)), *sorted(REFUSED | DEADLY)]
    good, failed = outputs[: len(rows)], {row["id"]: row for row in outputs[len(rows) :]}
    assert [row["text"] for row in good] == [output["text"] for output in stock_eager["outputs"]]
    assert [row["token_ids"] for row in good] == [o["tokens"] for o in stock_eager["outputs"]]
    assert all(row["error"] is None for row in good)
    assert all(row["text"] is None for row in failed.values())
    assert "cannot be empty" in failed["empty"]["error"]
    assert "maximum context length is 512" in failed["long"]["error"]
    assert "TypeError" in failed["missing"]["error"] and "TypeError" in failed["number"]["error"]
    assert "died" in failed["deadly"]["error"]


def test_job_that_is_killed_resumes_and_runs_only_what_is_missing(job):
    rows = [{"id": f"row {n}", "prompt": f"And in the year {n} Emma was"} for n in range(800)]
    process, folder = job(rows, write_parquet)
    before = parts_once_there_are(3, folder, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert_all_end()
    before |= {part: part.read_text() for part in (folder / "parts").glob("*.jsonl")}
    assert not (folder / "outputs.jsonl").exists()
    resumed, _ = job(rows, write_parquet)
    assert resumed.wait(400) == 0
    after = {part: part.read_text() for part in (folder / "parts").glob("*.jsonl")}
    assert before.items() <= after.items() and len(before) < len(after)
    finished = [row["id"] for part in after for row in read(part)]
    assert sorted(finished) == sorted(row["id"] for row in rows), "each row ran once"
    assert [row["id"] for row in read(folder / "outputs.jsonl")] == sorted(finished)


def write_jsonl(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def write_parquet(folder, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def parts_once_there_are(number, folder, process):
    """The parts of the output by path, as soon as there are so many."""
    while len(parts := list((folder / "parts").glob("*.jsonl"))) < number:
        assert process.poll() is None, "the job ended before it was killed"
        time.sleep(0.05)
    return {part: part.read_text() for part in parts}


def read(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def assert_all_end():
    """All processes of the job end soon: Ray's, the actors', the ranks'."""
    deadline = time.monotonic() + END_S
    while leftovers.processes() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert leftovers.processes() == []
    assert leftovers.of_these_tests() == set()
