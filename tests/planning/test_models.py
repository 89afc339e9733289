# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Models: sizes of those in the package, quantisation, and config.json files that won't do."""

import json

import pytest
from planning.cases import ROOT, SMALL_CONFIG

from vllm_dwdp.planning import profiles
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.formats import is_quantised, quantised_format
from vllm_dwdp.planning.model_config import read_model

BILLIONS = {
    "deepseek-r1": 671,
    "qwen3-235b-a22b": 235,
    "qwen3-30b-a3b": 30.5,
    "gpt-oss-120b": 116.8,
    "glm-4.5": 355,
    "kimi-k2": 1026,
    "mixtral-8x7b": 46.7,
}
"""Parameters as their makers give them, without layers for speculative decoding."""


def write(folder, **fields):
    (folder / "config.json").write_text(json.dumps(fields))
    return str(folder)


def num_params(model):
    moe = model.num_experts * (model.expert_params + model.hidden) + model.shared_params
    return (
        model.num_moe_layers * moe
        + model.num_dense_layers * model.dense_params
        + model.num_layers * model.attention.params
        + model.vocab_params
    )


def test_all_models_are_listed():
    assert sorted(BILLIONS) == profiles.names(profiles.MODELS)


@pytest.mark.parametrize("name", BILLIONS)
def test_models_have_the_parameters_that_their_makers_give(name):
    assert num_params(read_model(name)) / 1e9 == pytest.approx(BILLIONS[name], rel=0.015)


def test_a_model_file_has_only_what_plan_reads():
    for path in sorted(profiles.folder(profiles.MODELS).glob("*.json")):
        assert len(json.loads(path.read_text())) < 32
        assert "Hugging Face" in json.loads(path.read_text())["source"]


def test_a_folder_a_file_and_a_name_give_the_same_model():
    file = ROOT / "configs/models/kimi-k2.json"
    assert read_model(str(file)) == read_model("kimi-k2")
    assert read_model(str(ROOT / "examples/demo_model")).num_experts == 16


def test_deepseek_r1_has_nvfp4_experts_and_output_projections():
    formats = read_model("deepseek-r1").formats
    assert (formats.experts.name, formats.attention_out.name) == ("nvfp4", "nvfp4")
    assert (formats.attention_in.name, formats.kv_bytes) == ("bf16", 1)
    assert read_model("deepseek-r1", expert_format="fp8").formats.experts.name == "fp8"


def test_gpt_oss_keeps_attention_in_bf16_and_half_its_layers_in_a_window():
    model = read_model("gpt-oss-120b")
    assert (model.formats.experts.name, model.formats.attention_in.name) == ("mxfp4", "bf16")
    assert (model.attention.window, model.attention.window_layers) == (128, 18)


def test_dense_layers_are_counted_apart(tmp_path):
    assert read_model("deepseek-r1").num_dense_layers == 3
    assert read_model(write(tmp_path, **SMALL_CONFIG, decoder_sparse_step=2)).num_moe_layers == 2
    assert read_model(write(tmp_path, **SMALL_CONFIG, mlp_only_layers=[0])).num_moe_layers == 3
    assert (
        read_model(write(tmp_path, **SMALL_CONFIG, moe_layer_freq=[0, 1, 1, 1])).num_moe_layers == 3
    )


def test_fields_of_the_language_model_may_lie_in_text_config(tmp_path):
    inner = read_model(write(tmp_path, model_type="vl", text_config=SMALL_CONFIG))
    assert inner == read_model(write(tmp_path, **SMALL_CONFIG))


def test_modelopt_states_its_formats_in_a_file_beside(tmp_path):
    stated = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["*self_attn*"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated))
    formats = read_model(write(tmp_path, **SMALL_CONFIG)).formats
    assert (formats.experts.name, formats.attention_out.name) == ("nvfp4", "bf16")


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float"}}},
            },
            "nvfp4",
        ),
    ],
)
def test_quantisations_are_known(quantization, name):
    assert quantised_format(quantization).name == name


@pytest.mark.parametrize(
    ("pattern", "is_exception"),
    [
        ("model.layers.*.self_attn*", True),
        ("self_attn", False),
        ("model.layers.7.self_attn", True),
        ("re:.*self_attn.*", True),
        ("lm_head", False),
        ("model.layers.*.mlp", False),
    ],
)
def test_exceptions_from_quantisation_are_patterns(pattern, is_exception):
    found = is_quantised("model.layers.7.self_attn.o_proj", {"ignore": [pattern]})
    assert found is not is_exception


def without(name):
    return {key: value for key, value in SMALL_CONFIG.items() if key != name}


@pytest.mark.parametrize(
    "name", sorted(SMALL_CONFIG.keys() - {"num_experts", "num_key_value_heads"})
)
def test_a_missing_field_is_named(name, tmp_path):
    fields = without(name)
    fields.pop({"moe_intermediate_size": "intermediate_size"}.get(name, name), None)
    if name == "intermediate_size":
        fields.pop("moe_intermediate_size")
    with pytest.raises(PlanError, match=name):
        read_model(write(tmp_path, **fields))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (without("num_experts"), "describes no Mixture-of-Experts model"),
        ({**SMALL_CONFIG, "num_experts": 1}, "describes no Mixture-of-Experts model"),
        ({**SMALL_CONFIG, "hidden_size": "wide"}, "expected a whole number as hidden_size"),
        ({**SMALL_CONFIG, "hidden_size": 0}, "expected hidden_size of at least 1"),
        ({**SMALL_CONFIG, "hidden_size": -1}, "expected a whole number as hidden_size"),
        ({**SMALL_CONFIG, "num_hidden_layers": True}, "expected a whole number"),
        ({**SMALL_CONFIG, "num_experts_per_tok": 9}, "expected at most the 8 experts"),
        ({**SMALL_CONFIG, "first_k_dense_replace": 4}, "got dense ones only"),
        ({**SMALL_CONFIG, "quantization_config": {"quant_method": "odd"}}, "--expert-format"),
    ],
)
def test_a_config_that_cannot_be_planned_is_refused(fields, sentence, tmp_path):
    with pytest.raises(PlanError, match=sentence):
        read_model(write(tmp_path, **fields))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "expected JSON"), ("[1]", "expected a JSON object"), ("\udcff", "expected a readable")],
)
def test_a_file_that_is_no_config_is_refused(text, sentence, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PlanError, match=sentence):
        read_model(str(tmp_path))


def test_a_folder_without_config_and_an_unknown_name_are_refused(tmp_path):
    with pytest.raises(PlanError, match="expected a readable file"):
        read_model(str(tmp_path))
    with pytest.raises(
        PlanError, match=r"expected a folder with config\.json, or one of deepseek-r1"
    ):
        read_model("no-such-model")
