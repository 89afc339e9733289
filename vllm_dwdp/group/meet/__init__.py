# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How the ranks of a group find each other at start-up, agree, and notice that one failed."""
