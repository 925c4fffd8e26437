"""Tiny base models of random weights in the layouts of published families: their files, names and values."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from tests.models import TOKENIZER, write_json
from trainers.model.base_models import packaged_minilm_folder

TEXTS = ("Where is the harbour?", "The harbour lies in the old town, behind the market. " * 3, "a", "Größe, 5 > 3 && 2")
WIDTH = 32
_SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    # Larger than usual, so that no two texts have nearly the same embedding.
    "initializer_range": 0.2,
}
_DECODER: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32768}
_QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_GEMMA_PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ",
    "Clustering": "task: clustering | query: ",
}

Make = Callable[[Path], None]


def word_pieces(folder: Path) -> None:
    """BERT's tokenizer."""
    for name in TOKENIZER:
        (folder / name).write_bytes((packaged_minilm_folder() / name).read_bytes())


def sentence_pieces(folder: Path) -> None:
    """XLM-RoBERTa's tokenizer: padding has id 1."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    unknown: dict[str, Any] = {"unk_token": "<unk>"}
    tokenizer.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, **unknown))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    _write_tokenizer(folder, tokenizer, **{f"{name}_token": token for name, token in names.items()})


def byte_pairs(folder: Path, end: str = "<|endoftext|>", **options: Any) -> None:
    """Qwen's or ModernBERT's tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=[end], initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, 0)])
    names = ["input_ids", "attention_mask"]
    _write_tokenizer(folder, tokenizer, pad_token=end, eos_token=end, model_input_names=names, **options)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, **options: Any) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)
    # transformers 5 writes a class that earlier versions do not have.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def layout(
    folder: Path,
    model_type: str,
    config: dict[str, Any],
    *,
    tokenizer: Make = word_pieces,
    pooling: dict[str, Any] | None = None,
    head: tuple[str, ...] = ("Normalize",),
    dtype: torch.dtype = torch.float32,
    max_seq_length: int | None = 512,
    **encoding: Any,
) -> Path:
    """Write the model; ``encoding`` is config_sentence_transformers.json, and a number in ``head`` a Dense's width."""
    folder.mkdir(parents=True)
    tokenizer(folder)
    sizes = {"vocab_size": 30522 if tokenizer is word_pieces else 512}
    torch.manual_seed(0)
    made = AutoConfig.for_model(model_type, **_SIZES | sizes | config)
    AutoModel.from_config(made, dtype=dtype).save_pretrained(folder)
    _as_published(folder / "config.json")
    modules, width = ["Transformer", "Pooling", *(name if name == "Normalize" else "Dense" for name in head)], WIDTH
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(modules) if index)]
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(zip(modules, paths, strict=True))
        ],
    )
    write_json(
        folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **(pooling or mode("mean_tokens"))}
    )
    for name, path in zip(head, paths[2:], strict=True):
        if name != "Normalize":
            write_dense(folder / path, width, int(name), dtype)
            width = int(name)
    if max_seq_length is not None:
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    if encoding:
        write_json(folder / "config_sentence_transformers.json", encoding)
    return folder


def _as_published(path: Path) -> None:
    """Write a configuration again as transformers 4 did, by which these families were published."""
    config = json.loads(path.read_text())
    config["torch_dtype"] = config.pop("dtype")
    # Of all layers, or by their kind.
    rope = config.pop("rope_parameters", None)
    if config["model_type"] == "modernbert":
        del config["layer_types"]
        config["global_rope_theta"] = rope["full_attention"]["rope_theta"]
        config["local_rope_theta"] = rope["sliding_attention"]["rope_theta"]
    elif rope and "full_attention" in rope:
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["rope_scaling"] = None
    elif rope:
        config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    write_json(path, config)


def mode(*active: str) -> dict[str, bool]:
    """A pooling's configuration as sentence-transformers 2 to 5 wrote it."""
    known = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {f"pooling_mode_{name}": name in active for name in known}


def write_dense(folder: Path, width: int, output: int, dtype: torch.dtype) -> None:
    """A Dense layer without bias and activation, as EmbeddingGemma has them."""
    identity = "torch.nn.modules.linear.Identity"
    sizes = {"in_features": width, "out_features": output, "bias": False, "activation_function": identity}
    write_json(folder / "config.json", sizes)
    save_file(
        {"linear.weight": torch.randn(output, width).to(dtype) / 4}, folder / "model.safetensors", {"format": "pt"}
    )


def router(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Questions and passages take different Dense layers."""
    layout(folder, "bert", {}, head=(), dtype=dtype, similarity_fn_name="cosine")
    names = [f"{task}_0_Dense" for task in ("query", "document")]
    dense = "sentence_transformers.base.modules.dense.Dense"
    content = {
        "types": dict.fromkeys(names, dense),
        "structure": {name.partition("_")[0]: [name] for name in names},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    write_json(folder / "2_Router/router_config.json", content)
    for name in names:
        write_dense(folder / "2_Router" / name, WIDTH, 24, dtype)
    modules = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.base.modules.router.Router"
    write_json(folder / "modules.json", [*modules, {"idx": 2, "name": "2", "path": "2_Router", "type": kind}])
    return folder


LAYOUTS: dict[str, Callable[..., Path]] = {
    "bge": partial(layout, model_type="bert", config={}, pooling=mode("cls_token")),
    "e5": partial(layout, model_type="bert", config={}, prompts={"query": "query: ", "passage": "passage: "}),
    "mpnet": partial(layout, model_type="mpnet", config={"pad_token_id": 1}, max_seq_length=384),
    "multi-qa-dot": partial(
        layout,
        model_type="mpnet",
        config={"pad_token_id": 1},
        pooling=mode("cls_token"),
        head=(),
        similarity_fn_name="dot",
    ),
    "minilm": partial(layout, model_type="bert", config={}, max_seq_length=256),
    "multilingual-minilm": partial(
        layout, model_type="bert", config={}, tokenizer=sentence_pieces, head=(), max_seq_length=128
    ),
    "multilingual-e5": partial(
        layout,
        model_type="xlm-roberta",
        config={"max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1},
        tokenizer=sentence_pieces,
    ),
    "gte": partial(layout, model_type="bert", config={}, max_seq_length=None),
    "gte-modernbert": partial(
        layout,
        model_type="modernbert",
        config={"global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0},
        tokenizer=partial(byte_pairs, end="[PAD]"),
        pooling=mode("cls_token"),
        head=(),
        max_seq_length=8192,
        similarity_fn_name="cosine",
    ),
    "nomic-modernbert": partial(
        layout,
        model_type="modernbert",
        config={"global_attn_every_n_layers": 2, "local_attention": 8, "pad_token_id": 0},
        tokenizer=partial(byte_pairs, end="[PAD]"),
        prompts={"query": "search_query: ", "document": "search_document: "},
        truncate_dim=16,
        similarity_fn_name="cosine",
    ),
    "qwen3-embedding": partial(
        layout,
        model_type="qwen3",
        config=_DECODER,
        tokenizer=partial(byte_pairs, padding_side="left"),
        pooling={"pooling_mode": "lasttoken", "include_prompt": True},
        max_seq_length=None,
        prompts={"query": _QUERY, "document": ""},
        default_prompt_name=None,
        similarity_fn_name="cosine",
    ),
    "embedding-gemma": partial(
        layout,
        model_type="gemma3_text",
        config=_DECODER
        | {
            "use_bidirectional_attention": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        tokenizer=partial(byte_pairs, end="<pad>"),
        head=("64", "32", "Normalize"),
        prompts=_GEMMA_PROMPTS,
        default_prompt_name=None,
        similarity_fn_name="cosine",
        max_seq_length=2048,
    ),
    "instructor": partial(
        layout,
        model_type="bert",
        config={},
        pooling={**mode("mean_tokens"), "include_prompt": False},
        prompts={"query": "find what answers: ", "document": "this is read: "},
    ),
    "all-poolings": partial(
        layout,
        model_type="bert",
        config={},
        pooling=mode(
            "cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"
        ),
        default_prompt_name="query",
        prompts={"query": "q: "},
    ),
    "router": router,
}
