# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One rank of a group without a model, for test_group_session: prints how its start-up ended."""

import dataclasses
import json
import os
import sys
import time

from vllm_dwdp.group.manifest import Manifest, TensorSchema
from vllm_dwdp.group.rendezvous import Endpoint, Rendezvous
from vllm_dwdp.group.session import GroupSession

MANIFEST = Manifest(
    dwdp_version="0.1.0",
    model_fingerprint="abc",
    dtype="bfloat16",
    quantization="None",
    placement=((0, 2), (2, 4)),
    memory_kind="host",
    granularity=4096,
    tensors=(TensorSchema("layers.0", "w13_weight", (4, 8, 8), "bfloat16"),),
)


def main() -> None:
    job = json.loads(sys.argv[1])
    rendezvous = Rendezvous(
        endpoint=Endpoint("127.0.0.1", job["port"]),
        job_rank=job["rank"],
        job_size=job["size"],
        dwdp_size=job["dwdp_size"],
        timeout_s=job.get("timeout_s", 20),
    )
    session = GroupSession(rendezvous, timeout_s=5)
    try:
        session.open()
        print("open", flush=True)
        time.sleep(job.get("load_s", 0))
        if "fail" in job:
            raise ValueError(job["fail"])
        manifest = dataclasses.replace(MANIFEST, **job.get("manifest", {}))
        session.meet(manifest, memory_file, num_layers=1)
        for peer in range(job["dwdp_size"]):
            if peer != rendezvous.dwdp_rank:
                (fd,) = session.layer(peer, 0, [4096])
                os.close(fd)
        session.finish()
        print("end: bound", flush=True)
        time.sleep(1)
    except Exception as error:
        print("end:", session.abort(error), flush=True)


def memory_file(layer_idx: int) -> list[tuple[int, int]]:
    return [(os.memfd_create("dwdp-test"), 4096)]


if __name__ == "__main__":
    main()
