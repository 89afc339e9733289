# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One rank of an offline job: a process with a vllm.LLM that runs the prompts its parent sends.

Messages from the parent: ("render", items), ("run", items), ("batch", items), ("abort",),
("call", parcel), and None, which ends the rank; an item is (id, parcel). Messages back:
("begun", None), ("ready", None), ("answers", answers with parcels), ("called", answer),
("group failed", sentence), ("failed", text).
"""

import os
from multiprocessing.connection import Connection
from typing import Any

import pydantic
from vllm.logger import init_logger

from vllm_dwdp.engine.setup import last_words
from vllm_dwdp.offline.child_watch import ending_with_its_children
from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.rank_ending import RankEnding, end_at_once
from vllm_dwdp.offline.rank_inbox import RankInbox
from vllm_dwdp.offline.rank_loop import RankLoop

logger = init_logger("vllm.dwdp")


def serve_rank(
    pipe: Connection, parent_pid: int, environment: dict[str, str], options: PickledOptions
) -> None:
    """Main function of the rank's process. The exit code is 0 only when the parent ended it."""
    os.setpgrp()  # only the parent gets Ctrl-C: it may end its ranks, or go on using them
    os.environ.update(environment)
    ending = RankEnding(parent_pid)
    exit_code: Any = 1
    try:
        pipe.send(("begun", None))
        _serve(pipe, ending, options)
    except SystemExit as end:
        exit_code = end.code
    except Exception:
        logger.exception("This dwdp rank could not end cleanly.")
    end_at_once(exit_code)


def _serve(pipe: Connection, ending: RankEnding, options: PickledOptions) -> None:
    inbox = RankInbox(pipe, on_end=ending.ask)
    llm = None
    try:
        from vllm import LLM

        llm = LLM(**options.load())
        pipe.send(("ready", None))
        with ending_with_its_children():
            RankLoop(llm, pipe, inbox).run()
    except Exception as error:
        logger.exception("This dwdp rank failed.")  # the parent may end a rank that has told it
        sentence = last_words.left() if llm is None else None
        pipe.send(("group failed", sentence) if sentence else ("failed", error_text(error)))
        raise SystemExit(1) from error
    finally:
        ending.begin()
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()


def error_text(error: Exception) -> str:
    """An error as text; an error of pydantic without all its arguments and its links."""
    if isinstance(error, pydantic.ValidationError):
        return "; ".join(_option_and_reason(part) for part in error.errors())
    return f"{type(error).__name__}: {error}"


def _option_and_reason(part: Any) -> str:
    """One error of pydantic as "option: reason", or as "reason" if it names no option."""
    option = ".".join(map(str, part["loc"]))
    return f"{option}: {part['msg']}" if option else str(part["msg"])
