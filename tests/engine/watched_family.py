# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Stands for a front-end, an engine and a worker: three processes that only sleep.

Engine and worker watch their parents. The script prints the process ids once both do. With the
argument "early" the engine starts no worker. The worker ignores SIGTERM.
"""

import multiprocessing
import os
import signal
import sys
import time

from vllm_dwdp.engine import parent_watch

CONTEXT = multiprocessing.get_context("spawn")


def run_engine(has_worker, said):
    parent_watch.GRACE_S = 1
    parent_watch.end_with_parent(parent_watch.end_workers)
    pids = [os.getpid()]
    if has_worker:
        worker = CONTEXT.Process(target=run_worker, args=(said,), daemon=True)
        worker.start()
        pids.append(worker.pid)
    else:
        said.send(1)
    said.send(pids)
    time.sleep(600)


def run_worker(said):
    parent_watch.GRACE_S = 1
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent_watch.end_with_parent()
    said.send(1)
    time.sleep(600)


def main():
    heard, said = CONTEXT.Pipe(duplex=False)
    CONTEXT.Process(target=run_engine, args=("early" not in sys.argv, said)).start()
    pids = next(message for message in (heard.recv(), heard.recv()) if message != 1)
    print(os.getpid(), *pids, flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
