# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Traces of some steps of a running group: collected, written, read, summed up and drawn."""
