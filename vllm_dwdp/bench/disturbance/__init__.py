# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Other work on one of the machine's parts, the same for all arms while they are measured.

core.py takes half of one core, gpu.py loads one GPU. Both are programs of their own.
"""
