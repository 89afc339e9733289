# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What is looked at in a process of its own: each module has a function `look`.

Its arguments and its result are JSON values. See doctor/child.py.
"""
