# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Runs one rank on a GPU, or on a GPU of the fake driver, and prints its outcome as JSON.

The argument is a job in JSON: {"rank", "size", "port", "gpu", "steps"}. Optional keys:

* "visible": the value of CUDA_VISIBLE_DEVICES.
* "uses_host": try the host's memory as well as the GPU's when ranks try each other's memory.
* "device": "gpu" for a real GPU. The other keys are for the fake driver.
* "fabric": a directory that stands for an NVLink domain.
* "lacks": the attributes that the GPUs lack.
* "fails": (symbol, which call, error), a call that fails.
"""

import gc
import json
import os
import sys
from pathlib import Path

job = json.loads(sys.argv[1])
for name, variable in (("visible", "CUDA_VISIBLE_DEVICES"), ("fabric", "FAKE_CUDA_FABRIC")):
    if job.get(name) is not None:
        os.environ[variable] = job[name]
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.fake_cuda import FakeCuda, num_memory_files  # noqa: E402
from support.gpu_ranks import GpuRank, adopt, layouts_of, make_layers  # noqa: E402
from support.rank_session import make_manifest, make_session  # noqa: E402

from vllm_dwdp.config import FetchMode  # noqa: E402
from vllm_dwdp.group.handover.peer_probe import PeerProbe  # noqa: E402
from vllm_dwdp.layout.placement import Placement  # noqa: E402
from vllm_dwdp.layout.rank_layout import RankLayout  # noqa: E402
from vllm_dwdp.memory.handle import TYPE_NAMES  # noqa: E402

NUM_LAYERS, NUM_EXPERTS = 3, 7
outcome = {"handles": None, "has_loaded": False}


def run(device):
    """Run the steps. Returns the number of wrong reads in words, or the sentence of a failure."""
    session = make_session(job["rank"], job["size"], job["port"], one_host=False)
    try:
        session.open()
        driver = device.driver(job["gpu"])
        uses_host = job.get("uses_host", False)
        probe = PeerProbe(driver, job_rank=job["rank"], uses_host=uses_host)
        handle_type = session.try_peers(probe)
        outcome["handles"] = TYPE_NAMES[handle_type]
        rank = bind(device, driver, session)
        session.finish()
    except Exception as error:
        return session.abort(error)
    rank.scheduler.start()
    for step in range(job["steps"]):
        rank.step(FetchMode.DIRECT if step % 3 == 2 else FetchMode.PREFETCH)
    return f"{rank.num_wrong_reads()} wrong reads"


def bind(device, driver, session):
    outcome["has_loaded"] = True
    placement = Placement.make(num_experts=NUM_EXPERTS, dwdp_size=job["size"])
    layers = make_layers(NUM_LAYERS, NUM_EXPERTS, driver.granularity)
    layouts = layouts_of(layers, placement, driver.granularity)
    layout = RankLayout(layouts, job["rank"], num_slots=2)
    experts = adopt(driver, layout, layers)
    session.meet(make_manifest(driver, placement))
    session.hand_over(experts.handles, num_parcels=layout.num_parcels)
    take_handles = session.take_handles
    return GpuRank(device, driver, experts, layers, take_handles, gpu=job["gpu"])


def make_device():
    if job.get("device") == "gpu":
        import torch
        from gpu import Gpu

        return Gpu(torch.cuda.device_count())
    fake = FakeCuda()
    fake.reset(seed=job["rank"])
    for attribute in job.get("lacks", ()):
        fake.set_attribute(attribute, 0)
    if job.get("fails"):
        fake.fail(*job["fails"])
    return fake


device = make_device()
ending = run(device)
gc.collect()
print(
    json.dumps(
        {
            "ending": ending,
            **outcome,
            "violations": device.violations,
            "leaks": device.leaks,
            "memory_files": num_memory_files(),
            "imports": device.calls("cuMemImportFromShareableHandle"),
        }
    )
)
