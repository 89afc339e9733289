# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Why a trace can't be recorded or read."""


class TraceError(Exception):
    """One sentence: what was expected, what came, what to do."""


class BadTrace(TraceError):
    """A file that is no trace of this program."""


class NoRecording(TraceError):
    """A server that can't be reached, can't record, or ran no step."""
