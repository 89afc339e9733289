# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Helpers for several folders of tests: servers, hosts, ports, logs, the fake CUDA driver."""
