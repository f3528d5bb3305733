"""Every policy by family and name. The first of a family is its default."""

from __future__ import annotations

TABLE: dict[str, dict[str, str]] = {
    "order": {
        "weighted_fair": "kvern.policies.order.weighted_fair:weighted_fair",
        "first_come": "kvern.policies.order.first_come:first_come",
    },
    "admission": {
        "whole_prompt_fits": "kvern.policies.admission.whole_prompt_fits:whole_prompt_fits",
        "next_slice_fits": "kvern.policies.admission.next_slice_fits:next_slice_fits",
    },
    "slicing": {
        "chunked": "kvern.policies.slicing.chunked:chunked",
        "whole_prompt": "kvern.policies.slicing.whole_prompt:whole_prompt",
        "layered": "kvern.policies.slicing.layered:layered",
    },
    "composing": {
        "stall_free": "kvern.policies.composing.stall_free:stall_free",
        "deadline_first": "kvern.policies.composing.deadline_first:deadline_first",
    },
    "preemption": {
        "lowest_rank": "kvern.policies.preemption.lowest_rank:lowest_rank",
        "urgent_first": "kvern.policies.preemption.urgent_first:urgent_first",
    },
}
