# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs kernels on one GPU for half of the time: `python gpu.py DEVICE`.

They are matrix products that fill the GPU while they run. No setting of the GPU is touched.
"""

import sys
import time

import torch

MATRIX = 4096
BUSY_S = 0.01


def take_half(device: str, size: int = MATRIX) -> None:
    """Multiply for about BUSY_S, then rest for as long as that took. Runs until it is killed."""
    matrix = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    _run(matrix, 3)
    count = max(1, round(BUSY_S / (_run(matrix, 5) / 5)))
    print("ready", flush=True)
    while True:
        time.sleep(_run(matrix, count))


def _run(matrix: torch.Tensor, count: int) -> float:
    """Returns the seconds that `count` products take."""
    start = time.perf_counter()
    for _ in range(count):
        product = matrix @ matrix
    product[0, 0].item()  # waits for the products
    return time.perf_counter() - start


if __name__ == "__main__":
    take_half(sys.argv[1], *map(int, sys.argv[2:]))
