# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The tensors of experts in a MoE layer, and its kernel, which is made again for those of all."""
