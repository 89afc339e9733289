# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What several folders of tests use: servers, hosts, ports, logs, the fake CUDA driver."""
