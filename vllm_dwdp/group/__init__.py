# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Start-up of a group: rendezvous, manifest check, exchange of handles, teardown."""
