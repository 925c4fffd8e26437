"""Models that cannot be trained rightly are refused by what their small files say."""

import json
from typing import Any

import pytest

from foldtune.errors import ModelFolderError
from foldtune.model_folder import check_model_folder

ST = "sentence_transformers.models."


def modules(*kinds: str) -> list[dict[str, str]]:
    return [{"path": f"{index}_{kind}" if index else "", "type": ST + kind} for index, kind in enumerate(kinds)]


# As of paraphrase-MiniLM, with a Dense layer.
WHOLE: dict[str, Any] = {
    "model.safetensors": "",
    "config.json": {"model_type": "bert"},
    "tokenizer.json": {},
    "modules.json": modules("Transformer", "Pooling", "Dense", "Normalize"),
    "1_Pooling/config.json": {},
    "2_Dense/config.json": {"activation_function": "torch.nn.modules.linear.Identity"},
    "2_Dense/model.safetensors": "",
    "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
    "config_sentence_transformers.json": {"prompts": {"query": None, "passage": "p: "}},
}
DENSE = "sentence_transformers.base.modules.dense.Dense"
ROUTED: dict[str, Any] = {
    "modules.json": modules("Transformer", "Pooling", "Router"),
    "2_Router/router_config.json": {"types": {"query_0_Dense": DENSE}},
    "2_Router/query_0_Dense/config.json": {},
    "2_Router/query_0_Dense/model.safetensors": "",
}


def check(changes: dict[str, Any]) -> None:
    """``WHOLE`` with other files; None leaves one out."""
    files = {name: json.dumps(content) for name, content in (WHOLE | changes).items() if content is not None}
    check_model_folder(files.keys(), lambda name: files[name].encode())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modules.json": None, "config_sentence_transformers.json": None},
        ROUTED,
        {"config.json": {"model_type": "nomic_bert", "auto_map": {"AutoModel": "modeling.Model"}}},
        {"config.json": {"model_type": "bert", "auto_map": {"AutoModelForMaskedLM": "modeling.Model"}}},
        {"model.safetensors": None, "model-00001-of-00002.safetensors": ""},
        {"tokenizer.json": None, "sentencepiece.bpe.model": ""},
        # Texts of any length.
        {"sentence_bert_config.json": {"max_seq_length": 1e30}},
    ],
)
def test_a_whole_model_is_accepted(changes: dict[str, Any]) -> None:
    check(changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # Copies of a folder without its subfolders, and with two poolings for questions and passages.
        ({"1_Pooling/config.json": None}, "1_Pooling/config.json of module Pooling is missing"),
        ({"1_Pooling/config.json": None, "1_Pooling": {}}, "1_Pooling/config.json of module Pooling is missing"),
        ({"modules.json": modules("Transformer", "Pooling", "Pooling", "Normalize")}, "one Pooling is needed, found 2"),
        ({"modules.json": modules("Transformer", "Normalize")}, "one Pooling is needed, found 0"),
        ({"modules.json": modules("StaticEmbedding", "Normalize")}, "the first module must be a Transformer"),
        ({"modules.json": modules("Transformer", "Pooling", "LSTM")}, "LSTM behind the Transformer is not supported"),
        ({"modules.json": [{"path": "", "type": "custom_st.Transformer"}]}, "code of its own, which is never run"),
        # As jina-embeddings-v3: adapters by task, in code of its own; and two transformers to choose from.
        (
            {"modules.json": [{"path": "", "type": "custom_st.Transformer", "kwargs": ["task"]}, *modules("Pooling")]},
            "modules.json: 'custom_st.Transformer' is code of its own, which is never run",
        ),
        (
            {
                "modules.json": None,
                "config.json": {"model_type": "xlm-roberta", "auto_map": {"AutoModel": "jinaai/x--modeling.Model"}},
            },
            "auto_map of config.json: the model needs code of its own, which is never run",
        ),
        (
            {"modules.json": modules("Router", "Normalize")},
            "modules.json: the first module must be a Transformer, found ['Router', 'Normalize']",
        ),
        ({"modules.json": [{"path": "../x", "type": f"{ST}Transformer"}]}, "leads out of the model's folder"),
        (
            {"modules.json": [module | {"name": "0"} for module in modules("Transformer", "Pooling")]},
            "modules.json: two modules have the name '0'",
        ),
        ({"modules.json": {}}, "not a list of modules"),
        ({"modules.json": [1]}, "not a list of modules"),
        (ROUTED | {"2_Router/router_config.json": {"types": {"a": f"{ST}Transformer"}}}, "Transformer inside a Router"),
        (ROUTED | {"2_Router/router_config.json": None}, "router_config.json is missing"),
        (ROUTED | {"2_Router/query_0_Dense/model.safetensors": None}, "query_0_Dense/model.safetensors is missing"),
        ({"config.json": {"model_type": "bert", "auto_map": {"AutoModel": "a.B"}}}, "code of its own"),
        ({"config.json": {"quantization_config": {"quant_method": "fp8"}}}, "quantization_config of config.json"),
        ({"config.json": None}, "config.json is missing"),
        ({"config.json": []}, "config.json is not a JSON object"),
        (
            {
                "modules.json": [{"path": "0_T", "type": f"{ST}Transformer"}, *modules("Transformer", "Pooling")[1:]],
                "0_T/adapter_config.json": {},
            },
            "0_T/adapter_config.json: adapters are not supported",
        ),
        ({"config.json": {"transformers_weights": "other.safetensors"}}, "transformers_weights 'other.safetensors'"),
        # Below it, all texts are the same; a fraction fails in serving.
        *(
            ({"sentence_bert_config.json": {"max_seq_length": tokens}}, f"max_seq_length {tokens!r} of sentence_bert")
            for tokens in (0, -1, 2, 32.5, "128", True)
        ),
        ({"config_sentence_transformers.json": {"truncate_dim": True}}, "truncate_dim True"),
        ({"adapter_config.json": {}}, "adapters are not supported, merge it into its base model"),
        ({"model.safetensors": None, "pytorch_model.bin": ""}, "pickled weights are not loaded"),
        ({"tokenizer.json": None}, "the tokenizer has no vocabulary"),
        ({"2_Dense/model.safetensors": None}, "2_Dense/model.safetensors is missing"),
        ({"2_Dense/config.json": {"activation_function": "os.system"}}, "activation_function 'os.system'"),
        ({"sentence_bert_config.json": {"model_args": {"attn_implementation": "x"}}}, "model_args of sentence_bert"),
        ({"sentence_bert_config.json": {"transformer_task": "fill-mask"}}, "transformer_task 'fill-mask'"),
        ({"sentence_bert_config.json": {"tokenizer_name_or_path": "/etc"}}, "tokenizer_name_or_path"),
        ({"config_sentence_transformers.json": {"prompts": None}}, "prompts of config_sentence_transformers.json"),
        ({"config_sentence_transformers.json": {"model_type": "CrossEncoder"}}, "a CrossEncoder is no bi-encoder"),
        ({"config_sentence_transformers.json": {"similarity_fn_name": "euclidean"}}, "similarity_fn_name 'euclidean'"),
        ({"config_sentence_transformers.json": {"truncate_dim": 0}}, "truncate_dim 0"),
    ],
)
def test_what_cannot_be_trained_rightly_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelFolderError) as found:
        check(changes)
    assert reason in str(found.value)


def test_a_file_that_is_not_json_is_named() -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json is not JSON"):
        check_model_folder(["model.safetensors", "config.json"], lambda _: b"{")
