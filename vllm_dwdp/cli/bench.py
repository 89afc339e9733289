# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp bench serve` and `vllm-dwdp bench memory`."""

import typer

from vllm_dwdp.cli.bench_memory import memory
from vllm_dwdp.cli.bench_serve import serve

app = typer.Typer(no_args_is_help=True, help="Measure deployments and copies side by side.")
app.command()(serve)
app.command()(memory)
