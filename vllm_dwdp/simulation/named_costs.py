# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The section `costs` of a scenario that names a model and hardware in place of numbers."""

from pydantic.dataclasses import dataclass

from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.hardware import Hardware, read_hardware
from vllm_dwdp.planning.model_config import read_model
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.spread import spread_experts
from vllm_dwdp.simulation.errors import ScenarioError
from vllm_dwdp.simulation.planned import WITHOUT_RIVALS, PlannedCosts
from vllm_dwdp.simulation.section import SECTION


@dataclass(frozen=True, kw_only=True, config=SECTION)
class NamedCosts:
    """Costs by the planner's roofline.

    model, hardware, expert_format: as `vllm-dwdp plan` takes them: names in configs/, or paths.
    """

    model: str
    hardware: str
    expert_format: str | None = None

    def of_group(self, dwdp_size: int, expert_ranks: int) -> PlannedCosts:
        """For ranks that share experts in groups of `dwdp_size`; expert_ranks: see PlannedCosts.

        Raises ScenarioError for a name that isn't known, and for groups larger than the hardware
        connects.
        """
        try:
            hardware = read_hardware(self.hardware)
            _check_group(hardware, max(dwdp_size, expert_ranks))
            model = read_model(self.model, expert_format=self.expert_format)
            # The link's rate is that of the group that uses it.
            num_ranks = dwdp_size if expert_ranks == 1 else expert_ranks
            rates = Rates.achieved(hardware, num_ranks)
            spread = spread_experts(model, dwdp_size)
            return PlannedCosts(model, rates, spread, WITHOUT_RIVALS, expert_ranks)
        except PlanError as error:
            raise ScenarioError(f"costs: {error}") from error


def _check_group(hardware: Hardware, num_ranks: int) -> None:
    if num_ranks > hardware.domain:
        raise PlanError(
            f"expected groups of at most {hardware.domain} ranks, which is how many reach each "
            f"other's memory on {hardware.name}, got {num_ranks}; set dwdp_size and dep_size."
        )
