# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""NVIDIA's driver, and the GPUs that it shows to this process."""

from typing import Any

from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.host import Host

VISIBLE = "CUDA_VISIBLE_DEVICES"
OLDEST, WITH_FABRIC = 11_030, 12_030
"""Versions of CUDA: the least that dwdp needs, and the first with fabric handles."""
NOT_FOUND = "No such file"
"""Part of what the loader of libraries says if there is none of that name."""

NO_DEVICE = 100
KNOWN_ERRORS = {
    NO_DEVICE: "no GPU is visible",
    802: "the system isn't ready: nvidia-fabricmanager may not run",
    803: "the library and the kernel's module are of different versions",
    999: "the kernel's module failed; its log (dmesg) says how",
}
"""CUresult: CUDA_ERROR_NO_DEVICE, _SYSTEM_NOT_READY, _SYSTEM_DRIVER_MISMATCH, _UNKNOWN."""


def gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def gpus_of_the_host(host: Host) -> int:
    """How many GPUs the kernel's module has, visible or not; 0 without the module."""
    return len(host.names("/proc/driver/nvidia/gpus", "*"))


def driver_release(host: Host) -> str:
    """The release of the kernel's module as the end of a sentence; "" if it isn't known."""
    words = (host.read("/proc/driver/nvidia/version") or "").split()
    found = [word for word in words if word.count(".") >= 1 and word[0].isdigit()]
    return f", driver {found[0]}" if found else ""


NO_NVIDIA = Case(
    Status.NOT_HERE,
    "there is no driver and no GPU",
    "To run ranks on GPUs, install NVIDIA's driver, or give the container GPUs; ranks on CPUs need "
    "none.",
)
NO_LIBRARY = Case(
    Status.FAIL,
    "the host has GPUs, and this process finds no libcuda.so.1",
    "Start the container with NVIDIA's container toolkit (--gpus all), or install the driver's "
    "libraries.",
)
UNUSABLE = Case(
    Status.FAIL,
    "the driver can't be initialised",
    "See whether `nvidia-smi` works, and what it says. On machines with NVSwitch start "
    "nvidia-fabricmanager; after an update of the driver load its module anew or restart the host.",
)
OLD_DRIVER = Case(
    Status.FAIL,
    "it is older than CUDA 11.3",
    "Update NVIDIA's driver to one for CUDA 12.8 or later.",
)
HIDES_ALL = Case(
    Status.FAIL,
    f"{VISIBLE} hides all GPUs",
    f"Unset {VISIBLE}, or name GPUs in it, the same ones for all ranks of a host.",
)


@check(
    "NVIDIA driver",
    "whether libcuda.so.1 opens and initialises, and for which CUDA it is",
    *(NO_NVIDIA, NO_LIBRARY, UNUSABLE, OLD_DRIVER, HIDES_ALL),
)
def cuda_driver(host: Host) -> Finding:
    found = host.ask("gpus")
    num_gpus = gpus_of_the_host(host)
    if "no_library" in found:
        return _without_library(found["no_library"], num_gpus)
    if "error" in found:
        return _unusable(host, found)
    if not found["gpus"]:
        return _without_gpu(host, f"a driver for CUDA {version_text(found)} without a visible GPU")
    text = f"for CUDA {version_text(found)}{driver_release(host)}"
    return OLD_DRIVER.found(text) if found["version"] < OLDEST else ok(text)


def _without_library(error: str, num_gpus: int) -> Finding:
    if NOT_FOUND not in error:
        return UNUSABLE.found(error)
    if num_gpus:
        return NO_LIBRARY.found(f"{error}; the host has {num_gpus} GPUs")
    return NO_NVIDIA.found(error)


def version_text(found: dict[str, Any]) -> str:
    return f"{found['version'] // 1000}.{found['version'] % 1000 // 10}"


def _unusable(host: Host, found: dict[str, Any]) -> Finding:
    meaning = KNOWN_ERRORS.get(found["code"])
    text = f"{found['error']}: {meaning}" if meaning else found["error"]
    return _without_gpu(host, text) if found["code"] == NO_DEVICE else UNUSABLE.found(text)


def _without_gpu(host: Host, text: str) -> Finding:
    if (named := host.variable(VISIBLE)) is not None:
        return HIDES_ALL.found(f"{text}; {VISIBLE} is '{named}'")
    return UNUSABLE.found(text) if gpus_of_the_host(host) else NO_NVIDIA.found(text)


TOO_FEW = Case(
    Status.WARN,
    "there are fewer than --dwdp-size",
    "Make more GPUs visible, or start {num_visible} ranks here and others on another host of the "
    "NVLink domain.",
)


@check("GPUs", "the visible GPUs, and the memory of each", TOO_FEW, needs=(cuda_driver,))
def gpus(host: Host) -> Finding:
    found = [f"{gpu['name']}, {gib(gpu['total_bytes'])}" for gpu in host.ask("gpus")["gpus"]]
    text = "; ".join(f"{found.count(kind)} x {kind}" for kind in dict.fromkeys(found))
    wanted = host.options.dwdp_size
    if wanted is not None and wanted > len(found):
        return TOO_FEW.found(f"{text}, for {wanted} ranks", num_visible=len(found))
    return ok(text)


HIDES_SOME = Case(
    Status.WARN,
    f"some GPUs of the host are hidden, by {VISIBLE} or by the container",
    f"Let every rank see all GPUs of its host: unset {VISIBLE}, or give all ranks the same list, "
    "and one container with all GPUs.",
)
MAY_HIDE = Case(
    Status.WARN,
    f"{VISIBLE} is set, and it isn't known how many GPUs the host has",
    f"Give all ranks of this host the same {VISIBLE}: a rank can't map the memory of a GPU that is "
    "hidden from it.",
)


@check(
    "visible GPUs",
    "whether GPUs of this host are hidden from this process",
    *(HIDES_SOME, MAY_HIDE),
    needs=(cuda_driver,),
)
def visible_gpus(host: Host) -> Finding:
    num_visible, num_all = len(host.ask("gpus")["gpus"]), gpus_of_the_host(host)
    named = host.variable(VISIBLE)
    text = f"{VISIBLE} is '{named}'" if named is not None else f"{VISIBLE} isn't set"
    if num_visible < num_all:
        return HIDES_SOME.found(f"{num_visible} of {num_all} GPUs; {text}")
    if named is not None and not num_all:
        return MAY_HIDE.found(f"{num_visible} GPUs; {text}")
    return ok(f"{num_visible} GPUs, none known to be hidden; {text}")


WITHOUT_CUDA = Case(
    Status.WARN,
    "PyTorch isn't built for CUDA",
    "To run ranks on the GPUs, install a PyTorch and a vLLM that are built for CUDA; with these, "
    "ranks run on CPUs.",
)
NEWER_CUDA = Case(
    Status.FAIL,
    "PyTorch is built for a later CUDA than the driver's",
    "Update NVIDIA's driver, or install a PyTorch and a vLLM for CUDA {version}.",
)


@check(
    "PyTorch for GPUs",
    "whether PyTorch is built for a CUDA that the driver knows",
    *(WITHOUT_CUDA, NEWER_CUDA),
    needs=(cuda_driver,),
)
def pytorch_cuda(host: Host) -> Finding:
    built, known = host.ask("pytorch")["cuda"], version_text(host.ask("gpus"))
    if not built:
        return WITHOUT_CUDA.found("PyTorch isn't built for CUDA, and there are GPUs")
    text = f"built for CUDA {built}, the driver knows up to {known}"
    is_newer = int(built.partition(".")[0]) > int(known.partition(".")[0])
    return NEWER_CUDA.found(text, version=known) if is_newer else ok(text)


GROUP = Group("NVIDIA GPUs", (cuda_driver, gpus, visible_gpus, pytorch_cuda))
