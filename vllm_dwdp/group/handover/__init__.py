# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How ranks give each other their memory: by file descriptors on a host, else by fabric handles."""
