# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Reads pickled options in a child process, as a rank does, but without vLLM."""

import multiprocessing
import pickle

from vllm_dwdp.offline.pickled_options import PickledOptions


def read_in_a_child(options):
    """Print for each option whether a child process finds it by name, or has a copy of it.

    For that the child pickles the option again, as vLLM does in a rank.
    """
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
