"""The conversion of all-MiniLM-L6-v2, measured by what its authors publish of its answers."""

from __future__ import annotations

import json
from operator import mul
from pathlib import Path
from typing import Any

import pytest

from cortexd.cli import minilm, samples
from tests.cli.engine import llama_cpp, post


def write_model(directory: Path, tensors: dict[str, Any], **config: Any) -> None:
    """A model folder whose weights are a header without data."""
    header = json.dumps(tensors).encode()
    (directory / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\0"
    )
    settings = {
        "model_type": "bert",
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "max_position_embeddings": 8,
        "layer_norm_eps": 1e-12,
    }
    (directory / "config.json").write_text(json.dumps(settings | config))
    (directory / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n##ing\n")


def test_llama_cpp_embeds_as_sentence_transformers_does(tmp_path: Path) -> None:
    # The sentences and similarities of that project's README and of www.sbert.net.
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    path = samples.materialise("minilm-l6-v2", tmp_path)
    with llama_cpp(path, "embedding") as url:
        tokens = post(f"{url}/tokenize", content="Embeddings, naïveté!", add_special=True)
        data = post(f"{url}/v1/embeddings", input=sentences)["data"]
    # [CLS] em ##bed ##ding ##s , naive ##te ! [SEP]
    assert tokens["tokens"] == [101, 7861, 8270, 4667, 2015, 1010, 15743, 2618, 999, 102]
    vectors = [entry["embedding"] for entry in data]
    assert [len(vector) for vector in vectors] == [384] * 3
    # Unit length each: the products are cosines. F16 weights and cores' vector units differ in
    # the fourth place.
    near, far, further = (
        sum(map(mul, vectors[a], vectors[b])) for a, b in [(0, 1), (0, 2), (1, 2)]
    )
    assert (near, far, further) == pytest.approx((0.6660, 0.1046, 0.1411), abs=1e-3)


def test_the_file_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = samples.materialise("minilm-l6-v2", tmp_path)
    assert path.read_bytes()[:4] == b"GGUF"
    assert 45e6 < path.stat().st_size < 47e6
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        ({}, {"model_type": "gpt2"}, "a gpt2 model, not a bert"),
        (
            {
                "embeddings.LayerNorm.weight": {
                    "dtype": "BF16",
                    "shape": [0],
                    "data_offsets": [0, 0],
                }
            },
            {},
            "embeddings.LayerNorm.weight is BF16, not F32",
        ),
        (
            {"decoder.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
            {},
            "llama.cpp's BERT has no tensor decoder.weight",
        ),
    ],
)
def test_another_kind_of_model_is_refused(
    tensors: dict[str, Any], config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_model(tmp_path, tensors, **config)
    with pytest.raises(ValueError, match=words):
        minilm.convert(tmp_path, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
