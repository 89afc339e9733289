# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How ranks share memory with each other: by file descriptors, or by fabric handles."""
