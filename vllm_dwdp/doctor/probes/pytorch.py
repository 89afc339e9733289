# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Imports PyTorch and says what it was built for."""

from typing import Any


def look() -> dict[str, Any]:
    """cuda, hip: the version of CUDA or of ROCm that PyTorch was built for; None if for neither."""
    import torch

    return {"cuda": torch.version.cuda, "hip": torch.version.hip}
