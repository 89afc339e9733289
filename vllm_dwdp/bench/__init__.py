# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures deployments of a model side by side, and the copies between the memories of a machine.

An *arm* is a deployment: DWDP, or another way to use the same cores or GPUs.
"""
