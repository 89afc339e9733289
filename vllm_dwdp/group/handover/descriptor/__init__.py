# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Handing over memory as file descriptors, through Unix sockets that only peers can find."""
