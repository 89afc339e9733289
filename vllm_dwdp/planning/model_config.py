# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Makes a MoeModel from a folder with config.json, from such a file, or from a profile's name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_dwdp.planning import profiles
from vllm_dwdp.planning.config_fields import ConfigFields, read_json
from vllm_dwdp.planning.config_formats import read_formats
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.model import Attention, Formats, MoeModel

_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_CONFIG = "config.json"


def read_model(place: str, *, expert_format: str | None = None) -> MoeModel:
    """The model at `place`: a folder with config.json, a file like it, or a name in configs/models.

    expert_format: a name of formats.FORMATS that counts instead of what the checkpoint says.
    Raises PlanError if there is no such place, it is no Mixture-of-Experts model, or lacks fields.
    """
    path = _find(place)
    values = read_json(path)
    fields = ConfigFields(_text_part(values), path)
    _check_is_moe(fields)
    model = _model(fields, place, read_formats(fields, values, expert_format))
    fields.check()
    return model


def _find(place: str) -> Path:
    path = Path(place)
    if path.is_dir():
        return path / _CONFIG
    if path.is_file():
        return path
    known = profiles.names(profiles.MODELS)
    if place in known:
        return profiles.path(profiles.MODELS, place)
    raise PlanError(
        f"expected a folder with config.json, or one of {', '.join(known)}, got {place!r}, which "
        "is neither; download the model's config.json and give its folder."
    )


def _text_part(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Models that also see or hear keep the fields of their language model in `text_config`."""
    inner = values.get("text_config")
    return {**values, **inner} if isinstance(inner, dict) else values


def _check_is_moe(fields: ConfigFields) -> None:
    if fields.number(*_EXPERTS, default=0) < 2:
        raise PlanError(
            f"{fields.path} describes no Mixture-of-Experts model: expected two experts or more in "
            f"one of {', '.join(_EXPERTS)}. DWDP shares experts; serve a dense model without it."
        )


def _model(fields: ConfigFields, place: str, formats: Formats) -> MoeModel:
    hidden = fields.positive("hidden_size")
    layers = fields.positive("num_hidden_layers")
    tied = bool(fields.values.get("tie_word_embeddings"))
    return MoeModel(
        name=Path(place).resolve().stem if Path(place).exists() else place,
        num_layers=layers,
        num_moe_layers=_num_moe_layers(fields, layers),
        hidden=hidden,
        num_experts=fields.positive(*_EXPERTS),
        top_k=_top_k(fields),
        expert_params=3 * hidden * fields.positive("moe_intermediate_size", "intermediate_size"),
        shared_params=3 * hidden * _shared_width(fields),
        dense_params=3 * hidden * fields.positive("intermediate_size", "moe_intermediate_size"),
        vocab_params=hidden * fields.positive("vocab_size") * (1 if tied else 2),
        attention=_attention(fields, hidden),
        formats=formats,
    )


def _top_k(fields: ConfigFields) -> int:
    top_k = fields.positive("num_experts_per_tok", "experts_per_token", "moe_topk", "top_k_experts")
    experts = fields.positive(*_EXPERTS)
    if top_k > experts:
        raise PlanError(
            f"expected at most the {experts} experts of a layer as num_experts_per_tok in "
            f"{fields.path}, got {top_k}."
        )
    return top_k


def _shared_width(fields: ConfigFields) -> int:
    shared = fields.number("n_shared_experts", "num_shared_experts", default=0)
    width = fields.number("moe_intermediate_size", default=0)
    return fields.number("shared_expert_intermediate_size", default=shared * width)


def _num_moe_layers(fields: ConfigFields, layers: int) -> int:
    first = fields.number("first_k_dense_replace", default=0)
    freq = fields.values.get("moe_layer_freq", 1)
    if isinstance(freq, list):
        return sum(1 for is_moe in freq if is_moe)
    sparse = fields.positive("decoder_sparse_step", "interleave_moe_layer_step", default=1)
    dense = set(fields.list_of("mlp_only_layers"))
    step = freq if isinstance(freq, int) and freq > 0 else 1
    found = sum(
        i >= first and i % step == 0 and (i + 1) % sparse == 0 and i not in dense
        for i in range(layers)
    )
    if not found:
        raise PlanError(f"expected layers with experts in {fields.path}, got dense ones only.")
    return found


def _attention(fields: ConfigFields, hidden: int) -> Attention:
    heads = fields.positive("num_attention_heads")
    if fields.values.get("kv_lora_rank"):
        return _latent_attention(fields, hidden, heads)
    dim = fields.positive("head_dim", default=max(1, hidden // heads))
    kv_heads = fields.positive("num_key_value_heads", default=heads)
    window, window_layers = _window(fields)
    return Attention(
        in_params=hidden * dim * (heads + 2 * kv_heads),
        out_params=heads * dim * hidden,
        num_heads=heads,
        head_dims=2 * dim,
        kv_values=2 * kv_heads * dim,
        window=window,
        window_layers=window_layers,
    )


def _latent_attention(fields: ConfigFields, hidden: int, heads: int) -> Attention:
    """Multi-head latent attention of DeepSeek, whose KV cache holds one latent for all heads."""
    latent, rope = fields.positive("kv_lora_rank"), fields.positive("qk_rope_head_dim")
    nope, value = fields.positive("qk_nope_head_dim"), fields.positive("v_head_dim")
    rank = fields.number("q_lora_rank", default=0)
    query = heads * (nope + rope)
    return Attention(
        in_params=(hidden * rank + rank * query if rank else hidden * query)
        + hidden * (latent + rope)
        + latent * heads * (nope + value),
        out_params=heads * value * hidden,
        num_heads=heads,
        head_dims=nope + rope + value,
        kv_values=latent + rope,
    )


def _window(fields: ConfigFields) -> tuple[int | None, int]:
    kinds = fields.list_of("layer_types")
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    return (fields.positive("sliding_window"), sliding) if sliding else (None, 0)
