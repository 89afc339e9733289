# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Which GPUs NVIDIA's driver shows to this process, and what they say that they can do."""

from typing import Any

from vllm_dwdp.doctor.probes.cuda_library import CudaError, CudaLibrary

FABRIC_HANDLES, HOST_MEMORY = 128, 141
"""CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED, and that of memory on the host's nodes."""


def look() -> dict[str, Any]:
    """version: CUDA's newest version that the driver knows. gpus: of each visible GPU what it is.

    access: by reader and owner, whether peer access is possible. no_library, error: why there is
    nothing of all this; `code` is CUDA's error.
    """
    try:
        driver = CudaLibrary()
    except OSError as error:
        return {"no_library": str(error)}
    except CudaError as error:
        return {"error": str(error), "code": error.code}
    gpus = range(driver.num_gpus)
    return {
        "version": driver.version,
        "gpus": [_describe(driver, gpu) for gpu in gpus],
        "access": [[driver.can_access(reader, owner) for owner in gpus] for reader in gpus],
    }


def _describe(driver: CudaLibrary, gpu: int) -> dict[str, Any]:
    return {
        "name": driver.name(gpu),
        "total_bytes": driver.total_bytes(gpu),
        "has_fabric": driver.has(gpu, FABRIC_HANDLES),
        "has_host_memory": driver.has(gpu, HOST_MEMORY),
    }
