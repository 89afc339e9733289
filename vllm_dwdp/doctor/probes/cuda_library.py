# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The few functions of NVIDIA's driver that say which GPUs there are, by ctypes.

The core opens a driver for one GPU only, and refuses GPUs that it can't use.
"""

import ctypes
from typing import Any

LIBRARY = "libcuda.so.1"
NAME_BYTES = 256
VERSIONS = {
    "cuInit": 2000,
    "cuDriverGetVersion": 2020,
    "cuDeviceGetCount": 2000,
    "cuDeviceGet": 2000,
    "cuDeviceGetName": 2000,
    "cuDeviceTotalMem": 3020,
    "cuDeviceGetAttribute": 2000,
    "cuDeviceCanAccessPeer": 4000,
}
"""By function, the version of CUDA in which its signature appeared, as in csrc/cuda/api.h."""


class CudaError(RuntimeError):
    """A call of the driver failed. code: its CUresult."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} failed with CUDA's error {code}")
        self.code = code


class CudaLibrary:
    """NVIDIA's driver, initialised. Raises OSError without one, and CudaError."""

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = ctypes.CDLL(library)
        self._call("cuInit", ctypes.c_uint(0))

    @property
    def version(self) -> int:
        """The newest CUDA that the driver knows: 13000 for 13.0."""
        return self._number("cuDriverGetVersion")

    @property
    def num_gpus(self) -> int:
        """How many GPUs this process sees."""
        return self._number("cuDeviceGetCount")

    def name(self, gpu: int) -> str:
        name = ctypes.create_string_buffer(NAME_BYTES)
        self._call("cuDeviceGetName", name, ctypes.c_int(NAME_BYTES), self._device(gpu))
        return name.value.decode(errors="replace")

    def total_bytes(self, gpu: int) -> int:
        found = ctypes.c_size_t()
        self._call("cuDeviceTotalMem", ctypes.byref(found), self._device(gpu))
        return found.value

    def has(self, gpu: int, attribute: int) -> bool:
        """Whether a GPU has an ability; a driver that is older than the ability says no."""
        try:
            return bool(
                self._number("cuDeviceGetAttribute", ctypes.c_int(attribute), self._device(gpu))
            )
        except CudaError:
            return False

    def can_access(self, reader: int, owner: int) -> bool:
        devices = self._device(reader), self._device(owner)
        return bool(self._number("cuDeviceCanAccessPeer", *devices))

    def _device(self, gpu: int) -> ctypes.c_int:
        return ctypes.c_int(self._number("cuDeviceGet", ctypes.c_int(gpu)))

    def _number(self, function: str, *arguments: Any) -> int:
        found = ctypes.c_int()
        self._call(function, ctypes.byref(found), *arguments)
        return found.value

    def _call(self, function: str, *arguments: Any) -> None:
        if code := self._find(function)(*arguments):
            raise CudaError(function, code)

    def _find(self, function: str) -> Any:
        """The function at its version, as the driver itself finds it."""
        found = ctypes.c_void_p()
        request = (
            *(function.encode(), ctypes.byref(found), ctypes.c_int(VERSIONS[function])),
            ctypes.c_uint64(0),
        )
        if hasattr(self._library, "cuGetProcAddress_v2"):
            code = self._library.cuGetProcAddress_v2(*request, None)
        else:
            code = self._library.cuGetProcAddress(*request)  # before CUDA 12
        if code or not found.value:
            raise CudaError(f"cuGetProcAddress of {function}", code)
        return ctypes.CFUNCTYPE(ctypes.c_int)(found.value)
