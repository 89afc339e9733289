# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a rank does with the options that it gets, in a process of its own without vLLM."""

import multiprocessing
import pickle

from vllm_dwdp.offline.pickled_options import PickledOptions


def read_in_a_child(options):
    """Print for each option whether a child process can pickle it again, as vLLM does there."""
    arguments = (PickledOptions.of(options),)
    child = multiprocessing.get_context("spawn").Process(target=_read, args=arguments)
    child.start()
    child.join()


def _read(options):
    try:
        found = options.load()
    except TypeError as error:
        print("refused:", error)
        return
    for name, thing in found.items():
        print(name, "is found by name" if _is_found_by_name(thing) else "is a copy")


def _is_found_by_name(thing):
    try:
        return pickle.loads(pickle.dumps(thing)) is thing
    except pickle.PicklingError:
        return False
