# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""dwdp's MoE layer: how it is constructed, loaded, bound to views, and run."""
