# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""All checks, by group, in the order of the report."""

from vllm_dwdp.doctor.groups.environment import GROUP as ENVIRONMENT
from vllm_dwdp.doctor.groups.gpu_links import GROUP as GPU_LINKS
from vllm_dwdp.doctor.groups.gpu_memory import GROUP as GPU_MEMORY
from vllm_dwdp.doctor.groups.gpus import GROUP as GPUS
from vllm_dwdp.doctor.groups.host_memory import GROUP as HOST_MEMORY
from vllm_dwdp.doctor.groups.installation import GROUP as INSTALLATION
from vllm_dwdp.doctor.groups.machine import GROUP as MACHINE
from vllm_dwdp.doctor.groups.network import GROUP as NETWORK
from vllm_dwdp.doctor.groups.packages import GROUP as PACKAGES

GROUPS = (
    *(INSTALLATION, GPUS, GPU_MEMORY, GPU_LINKS),
    *(HOST_MEMORY, MACHINE, NETWORK, ENVIRONMENT, PACKAGES),
)
