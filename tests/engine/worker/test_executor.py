# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The executor of a rank names the rank when its worker has died."""

import logging

from vllm_dwdp.engine.worker.executor import DwdpExecutor


class Recorder(logging.Handler):
    """Keeps what is logged; vLLM's loggers hand nothing on to pytest."""

    def __init__(self):
        super().__init__()
        self.sentences = []

    def emit(self, record):
        self.sentences.append(record.getMessage())


def test_rank_of_a_dead_worker_is_logged_before_its_engine_hears_of_it():
    executor = DwdpExecutor.__new__(DwdpExecutor)  # with __init__ it would start a worker
    executor._job_rank, executor.is_failed = 3, True
    recorder, logged_when_told = Recorder(), []
    logger = logging.getLogger("vllm.dwdp")
    logger.addHandler(recorder)
    try:
        executor.register_failure_callback(lambda: logged_when_told.extend(recorder.sentences))
    finally:
        logger.removeHandler(recorder)
    (sentence,) = logged_when_told
    assert sentence.startswith("dwdp rank 3 ends, because its worker has ended; look for")
