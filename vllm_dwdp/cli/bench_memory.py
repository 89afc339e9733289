# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp bench memory`: how fast a rank copies out of its peers' memory."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vllm_dwdp.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from vllm_dwdp.bench.bench_memory import CopySpeed


def memory(
    dwdp_size: Annotated[
        int,
        typer.Option(
            min=2, max=256, help="Ranks of a group; one of them reads the others' memory."
        ),
    ] = 4,
    slice_bytes: Annotated[
        list[int] | None,
        typer.Option(
            min=4096,
            help="Bytes of a slice. May be given several times.",
            show_default="64 KiB to 16 MiB",
        ),
    ] = None,
    copy_threads: Annotated[
        int, typer.Option(min=1, help="Threads that copy, on hosts; dwdp's option of that name.")
    ] = 1,
    batched_copies: Annotated[
        bool,
        typer.Option("--batched-copies", help="On GPUs; dwdp's option of that name."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure copies out of peers' memory: bandwidth and latency, by slice size and peers.

    No model runs. Bandwidth is that of filling a slot, latency that of one slice alone.
    """
    from vllm_dwdp._core import DriverError
    from vllm_dwdp.bench.bench_memory import SLICE_BYTES, Machine, bench_memory
    from vllm_dwdp.bench.errors import BenchError

    counts = sorted({1, dwdp_size // 2, dwdp_size - 1})
    try:
        machine = Machine.of_this(
            dwdp_size - 1, copy_threads=copy_threads, use_batches=batched_copies
        )
        found = bench_memory(machine, counts, slice_bytes or SLICE_BYTES)
    except BenchError as error:
        raise CommandError(str(error)) from error
    except DriverError as error:
        raise CommandError(str(error), ExitCode.FAILED) from error
    if as_json:
        rows = [asdict(one) for one in found]
        typer.echo(
            json.dumps({"memory": machine.reader.kind, "peers": machine.places, "copies": rows})
        )
        return
    console = Console(highlight=False)
    console.print(_table(machine.reader.kind, found))
    console.print(f"Peers' memory: {', '.join(machine.places)}.", markup=False)


def _table(kind: str, found: "list[CopySpeed]") -> Table:
    table = Table(title=f"Copies into a slot, {kind} memory")
    for head in ("peers", "slice, KiB", "GB/s", "latency, us"):
        table.add_column(head, justify="right")
    for one in found:
        table.add_row(
            str(one.num_peers),
            f"{one.slice_bytes / 1024:,.0f}",
            f"{one.bytes_per_s / 1e9:.2f}",
            f"{one.latency_s * 1e6:.1f}",
        )
    return table
