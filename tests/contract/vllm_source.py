# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Checks that vLLM's source has the definitions that dwdp relies on, without importing vLLM.

    python tests/contract/vllm_source.py vllm-0.33.0-cp38-abi3-manylinux1_x86_64.whl ...

Takes package folders (`.../vllm`) and wheels. Prints the entries of the contract
(vllm_dwdp/engine/seams.py) that are missing, and exits with 1 if there is one.
"""

import sys
from pathlib import Path

from vllm_dwdp.engine.seams import CONTRACT
from vllm_dwdp.engine.vllm_source import missing


def main() -> int:
    num_missing = 0
    for source in map(Path, sys.argv[1:]):
        lacking = missing(source)
        num_missing += len(lacking)
        print(f"{source}: {len(CONTRACT) - len(lacking)} of {len(CONTRACT)} seams found")
        for seam in lacking:
            print(f"  missing: {seam}")
    return 1 if num_missing else 0


if __name__ == "__main__":
    sys.exit(main())
