# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Writes the trace of a run of the GPU suite, checks it, and sums it up for the results."""

from vllm_dwdp.trace.trace_file import Trace


def figures_of_trace(recordings, path):
    """Totals by rank. recordings: one of each rank. path: of the trace's file.

    Raises AssertionError if totals and counters differ.
    """
    trace = Trace.of(recordings)
    trace.write(path)
    found = []
    for one in trace.ranks:
        assert one.num_steps > 0, f"rank {one.rank} recorded no step"
        assert one.bytes.agrees, f"copied {one.bytes.traced} bytes, counted {one.bytes.counted}"
        ms = {
            "steps": one.step_s,
            "experts": one.kernel_s,
            "between": one.between_s,
            "waits": one.wait_s,
            "calls": one.calls_s,
            "copies": one.copy_s,
        }
        found.append(
            {
                "steps": one.num_steps,
                "tokens": one.tokens,
                "copied_mib": round(one.bytes.traced / 2**20),
                "ms_per_step": {
                    name: round(1e3 * seconds / one.num_steps, 2) for name, seconds in ms.items()
                },
                "hidden": None if one.hidden_share is None else round(one.hidden_share, 3),
            }
        )
    return found
