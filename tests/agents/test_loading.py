"""Models and tokenizers that can and can't be loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from forkgym.agents.loading import check_tokenizer, load_model, load_tokenizer, model_location
from forkgym.agents.transformers_agent import TransformersAgent
from tests.agents.tiny import byte_tokenizer, make_model, weight


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model and its tokenizer."""
    make_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def change_config(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_a_folder(folder: Path) -> None:
    model = load_model(str(folder), torch.float64)
    assert model.dtype == torch.float64
    torch.testing.assert_close(
        weight(model, "model.embed_tokens.weight"), weight(make_model().double(), "model.embed_tokens.weight")
    )
    assert len(load_tokenizer(str(folder))) == 262


def test_the_embedded_name_is_a_folder_of_the_package() -> None:
    location = Path(model_location("embedded"))
    assert location.name == "embedded"
    assert (location.parent / "loading.py").is_file()
    assert model_location("other/model") == "other/model"


def load_float32(name: str) -> object:
    return load_model(name, torch.float32)


@pytest.mark.parametrize("load", [load_tokenizer, load_float32])
@pytest.mark.parametrize("name", ["", "no/such-model", "no such folder", "/nonexistent/folder"])
def test_a_name_of_nothing(name: str, load: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match="expected 'embedded', a folder that holds one, or a name on") as caught:
        load(name)
    assert f"{name!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_are_broken(folder: Path) -> None:
    name = str(folder)
    change_config(folder, num_hidden_layers=4, layer_types=None)
    with pytest.raises(ValueError, match=r"11 weights are missing, model\.layers\.3\."):
        load_model(name, torch.float32)
    change_config(folder, num_hidden_layers=3, hidden_size=16)
    with pytest.raises(ValueError, match="model '.*': expected 'embedded'"):
        load_model(name, torch.float32)
    change_config(folder, hidden_size="many")
    with pytest.raises(ValueError, match="model '.*': expected 'embedded'.*hidden_size"):
        load_model(name, torch.float32)
    change_config(folder, hidden_size=32)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="model '.*': expected 'embedded'"):
        load_model(name, torch.float32)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer '.*': expected 'embedded'"):
        load_tokenizer(name)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not a valid JSON file"):
        load_model(name, torch.float32)


@pytest.mark.parametrize("missing", ["eos_token", "pad_token"])
def test_a_tokenizer_without_an_end_or_a_padding_token(missing: str, tmp_path: Path) -> None:
    kept = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    del kept[missing]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer().backend_tokenizer, **kept)
    message = f"has no {missing}, expected one: set it in its tokenizer_config.json"
    with pytest.raises(ValueError, match=f"tokenizer 'mine' {message}"):
        check_tokenizer(tokenizer, "mine")
    with pytest.raises(ValueError, match=message):
        TransformersAgent(make_model(), tokenizer)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tokenizer '{tmp_path}' {message}"):
        load_tokenizer(str(tmp_path))
