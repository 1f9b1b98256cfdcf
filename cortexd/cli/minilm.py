"""all-MiniLM-L6-v2 as one GGUF file, made from the safetensors in its PyPI package.

What llama.cpp's own convert_hf_to_gguf.py does for a BERT with a WordPiece vocabulary, without
the gigabytes of torch and transformers it needs. Imported only when that sample is asked for:
numpy and gguf are not among what cortexd itself installs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_UNUSED = ("embeddings.position_ids", "pooler.")  # the sentence vector is a mean, not the pooler's
_FULL_PRECISION = ("position_embd.weight", "token_types.weight")  # llama.cpp adds these as F32


def convert(source: Path, target: Path) -> None:
    """Write `target` from a folder with model.safetensors, config.json and vocab.txt.

    Matrices become F16: half of the memory, and embeddings whose cosine to the F32 ones is above
    0.9999. Raises OSError, and ValueError for a model that is not a BERT with F32 weights.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "bert":
        raise ValueError(f"{source}: a {config['model_type']} model, not a bert")
    writer = gguf.GGUFWriter(target, "bert")
    try:
        _add_settings(writer, config)
        _add_vocabulary(writer, (source / "vocab.txt").read_text(encoding="utf-8"))
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
        for theirs, tensor in _tensors(source / "model.safetensors"):
            ours = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            if ours is None:
                raise ValueError(f"{source}: llama.cpp's BERT has no tensor {theirs}")
            is_full = tensor.ndim == 1 or ours in _FULL_PRECISION
            writer.add_tensor(ours, tensor.astype(np.float32 if is_full else np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_settings(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_type("model")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: str) -> None:
    # Not splitlines: a token may be one of the rarer line separators of Unicode.
    tokens = vocabulary.removesuffix("\n").split("\n")
    ids = {token: number for number, token in enumerate(tokens)}
    control = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token if token in control else _phantom(token) for token in tokens])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_type_count(2)
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_mask_token_id(ids["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_sep_token(True)


def _phantom(token: str) -> str:
    """WordPiece marks what goes on within a word ("##ing"), llama.cpp what begins one ("▁the")."""
    return token[2:] if token.startswith("##") else f"▁{token}"


def _tensors(path: Path) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[Any]]]]:
    """Names and F32 arrays: the length of a JSON header in 8 bytes, the header, the raw data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length)
    for name, entry in header.items():
        if name == "__metadata__" or name.startswith(_UNUSED):
            continue
        if entry["dtype"] != "F32":
            raise ValueError(f"{path}: {name} is {entry['dtype']}, not F32")
        begin, end = entry["data_offsets"]
        yield name, data[begin:end].view("<f4").reshape(entry["shape"])
