# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Writes dashboard.json, a Grafana dashboard of DWDP's metrics, with Grafana's own library.

pip install grafana-foundation-sdk
python examples/observability/make_dashboard.py
"""

import json
from pathlib import Path
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef

PATH = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
OF_MODEL = '{model_name=~"$model_name"}'
WINDOW = "[$__rate_interval]"
HEIGHT, WIDTH = 8, 12


class Query(NamedTuple):
    text: str
    legend: str


class Panel(NamedTuple):
    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]


def rate(metric: str, *labels: str) -> str:
    return f"sum by ({', '.join(labels)}) (rate({metric}{OF_MODEL}{WINDOW}))"


PANELS = (
    Panel(
        "Prompt tokens",
        "What all ranks together compute; vLLM's own metric.",
        "short",
        (Query(rate("vllm:prompt_tokens_total", "engine"), "rank {{engine}}"),),
    ),
    Panel(
        "Prompt tokens that wait",
        "Steps that fetch need many tokens. Where few wait, see min_tokens_per_step.",
        "short",
        (Query(f"dwdp:pending_prefill_tokens{OF_MODEL}", "rank {{engine}}"),),
    ),
    Panel(
        "Waits for experts",
        "Seconds of waiting per second. Near 0: copies hide behind compute.",
        "percentunit",
        (Query(rate("dwdp:exposed_wait_seconds_total", "engine"), "rank {{engine}}"),),
    ),
    Panel(
        "Steps by fetch mode",
        "The mode of each step's first MoE layer.",
        "ops",
        (Query(rate("dwdp:steps_total", "engine", "mode"), "rank {{engine}} {{mode}}"),),
    ),
    Panel(
        "Bytes fetched",
        "Experts copied from peers or host memory. 'direct' copies none.",
        "Bps",
        (Query(rate("dwdp:bytes_fetched_total", "engine", "mode"), "rank {{engine}} {{mode}}"),),
    ),
    Panel(
        "Living members of the group",
        "Fewer than the size: a rank has died. The others go on.",
        "short",
        (
            Query(f"dwdp:group_members_alive{OF_MODEL}", "seen by rank {{engine}}"),
            Query(f"max(dwdp:group_size{OF_MODEL})", "size"),
        ),
    ),
    Panel(
        "Memory of experts",
        "A rank's own memory, its slots, and what it has mapped of its peers' memory.",
        "bytes",
        (
            Query(f"dwdp:resident_expert_bytes{OF_MODEL}", "rank {{engine}} own"),
            Query(f"dwdp:slot_bytes{OF_MODEL}", "rank {{engine}} slots"),
            Query(f"dwdp:mapped_expert_bytes{OF_MODEL}", "rank {{engine}} mapped"),
        ),
    ),
    Panel(
        "Tokens that fit into the KV cache",
        "As it is, and as it would be if the rank held all experts itself.",
        "short",
        (
            Query(
                f'dwdp:kv_tokens{OF_MODEL[:-1]}, experts=~"shared|whole"}}',
                "rank {{engine}} {{experts}}",
            ),
        ),
    ),
)


def panel(described: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(described.title)
        .description(described.about)
        .unit(described.unit)
        .min(0)
        .datasource(SOURCE)
        .height(HEIGHT)
        .span(WIDTH)
        .legend(common.VizLegendOptions().show_legend(True))
    )
    for query in described.queries:
        made.with_target(prometheus.Dataquery().expr(query.text).legend_format(query.legend))
    return made


def make() -> str:
    """The dashboard in JSON."""
    made = (
        dashboard.Dashboard("vLLM with DWDP")
        .uid("vllm-dwdp")
        .tags(["vllm", "dwdp"])
        .refresh("10s")
        .time("now-30m", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("model_name")
            .label("model")
            .query("label_values(dwdp:group_size, model_name)")
            .datasource(SOURCE)
            .include_all(True)
            .all_value(".*")
        )
    )
    for described in PANELS:
        made.with_panel(panel(described))
    return json.dumps(json.loads(JSONEncoder().encode(made.build())), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(make())
