"""A language model from a folder or a GGUF file, and what it will take, known before a weight is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any

from streamattn_cli.engine.watch.meter import available_memory
from streamattn_cli.engine.workers.pool import default_threads
from streamattn_cli.errors import CannotMeet, InputMalformed, InputMissing, MemoryBudget, UsageError
from streamattn_cli.models.footprint import Shapes, shapes_of
from streamattn_cli.models.interface import NAME, register
from streamattn_cli.rows.formats.safetensors import read_safetensors_header
from streamattn_cli.units import format_bytes

KNOWN_LAYERS = ("full_attention", "sliding_attention")


def libraries() -> tuple[ModuleType, ModuleType]:
    """torch and transformers. Raises UsageError where the extra is not installed."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # models are files that are there; nothing is looked for elsewhere
    os.environ["TQDM_DISABLE"] = "1"
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UsageError(
            f"models need the extra [models], which is not installed ({error}): pip install 'streamattn-cli[models]'"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return torch, transformers


@dataclass(frozen=True)
class Found:
    """A language model whose weights are not read yet: the name it was given, and what transformers is told (where, words).

    types: for each layer one of KNOWN_LAYERS.
    """

    name: str
    where: str
    words: dict
    tokenizer: Any
    config: Any
    types: tuple[str, ...]

    @property
    def global_layers(self) -> list[int]:
        """Numbers of the layers that attend to all rows."""
        return [at for at, kind in enumerate(self.types) if kind == "full_attention"]

    @property
    def shapes(self) -> Shapes:
        """The sizes of its rows."""
        return shapes_of(self.config, self.types)

    def load(self, memory: int | None = None, further: int = 0, told: str = "the text") -> Model:
        """The model, its weights in float32, attending through `interface`.

        memory: bytes that it may take, None for what the machine has; further: bytes that are needed beside it, for what is
        `told`. Raises MemoryBudget (6) before a weight is read, InputMalformed (4), and CannotMeet (11).
        """
        torch, transformers = libraries()
        weights, allowed = weight_bytes(self.name), memory or available_memory()
        if allowed is not None and weights + further > allowed:
            beside = f", and {told} {format_bytes(further)}" if further else ""
            less = "a smaller --chunk, fewer --tokens or fewer methods"
            raise MemoryBudget(
                f"{self.name}: its weights take {format_bytes(weights)} in float32{beside}; {format_bytes(allowed)} are "
                f"{'allowed by --memory' if memory else 'free here (machine, ulimit -v)'}. "
                f"Take {less if weights < allowed else 'a smaller model, or a machine with more'}"
            )
        try:
            network = transformers.AutoModelForCausalLM.from_pretrained(
                self.where, local_files_only=True, dtype=torch.float32, attn_implementation=NAME, **self.words
            )
        except Exception as error:
            raise InputMalformed(f"{self.name}: transformers cannot load it ({_first_line(error)})") from None
        if not getattr(network, "_supports_attention_backend", False):
            raise CannotMeet(
                f"{self.name}: the attention layers of {type(network).__name__} do not ask the attention interface of "
                "transformers, so that nothing else can answer them"
            )
        return Model(**vars(self), network=network.eval())


@dataclass(frozen=True)
class Model(Found):
    """A language model with its weights: `network`, of transformers."""

    network: Any


def find_model(name: str, threads: int | None = None) -> Found:
    """The model of a folder or a .gguf file but for its weights, and as many threads for it.

    Raises UsageError (2), InputMissing (3), InputMalformed (4), and CannotMeet (11).
    """
    if not os.path.exists(name):
        raise InputMissing(f"{name}: no such folder or GGUF file")
    torch, transformers = libraries()
    torch.set_num_threads(threads or default_threads())
    register()
    where, words = _place(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, local_files_only=True, **words)
    except Exception as error:
        raise InputMissing(f"{name}: no tokenizer that transformers can load ({_first_line(error)}); put that of the model "
                           "into the folder (tokenizer.json)") from None  # fmt: skip
    config = _config(name, transformers, where, words)
    return Found(name, where, words, tokenizer, config, layer_types(name, config))


def load(name: str, threads: int | None = None) -> Model:
    """`find_model`, and its weights."""
    return find_model(name, threads).load()


def _place(name: str) -> tuple[str, dict]:
    """The folder to load from, and further words for it."""
    if os.path.isdir(name):
        if not os.path.exists(os.path.join(name, "config.json")):
            raise InputMissing(f"{name}: no config.json in it; give the folder of a model that transformers loads")
        return name, {}
    with open(name, "rb") as file:
        if file.read(4) != b"GGUF":
            raise InputMalformed(f"{name}: neither a folder nor a GGUF file")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"{name}: GGUF files need the extra [models] ({error}): pip install 'streamattn-cli[models]'"
        ) from None
    weight_bytes(name)  # of a file that is damaged, or cut off, nothing else says so plainly
    return os.path.dirname(name) or ".", {"gguf_file": os.path.basename(name)}


def _config(name: str, transformers: ModuleType, where: str, words: dict) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(where, local_files_only=True, **words)
    except Exception as error:
        raise InputMalformed(f"{name}: transformers does not know such a model ({_first_line(error)})") from None


def layer_types(name: str, config: Any) -> tuple[str, ...]:
    """The type of each layer; CannotMeet for one whose attention is not softmax over q.k."""
    config = config.get_text_config()
    count = config.num_hidden_layers
    types = getattr(config, "layer_types", None) or ["full_attention"] * count
    if len(types) == count and getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
        types = ["sliding_attention"] * count
    other = sorted(set(types) - set(KNOWN_LAYERS))
    if other:
        at = next(i for i, kind in enumerate(types) if kind == other[0])
        raise CannotMeet(f"{name}: layer {at} is of type {other[0]}; only softmax over q.k, as of full_attention and "
                         "sliding_attention, can be answered here")  # fmt: skip
    return tuple(types)


def weight_bytes(name: str) -> int:
    """Bytes of the weights of a model in float32, from the headers of its files; while a GGUF file is read twice that."""
    if not os.path.isdir(name):
        from gguf import GGUFReader

        try:
            return 2 * 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(name).tensors)
        except Exception as error:  # of whatever kind: it reads what is there
            raise InputMalformed(f"{name}: damaged, or not a GGUF file ({_first_line(error)})") from None
    files = [os.path.join(name, file) for file in sorted(os.listdir(name))]
    headers = [read_safetensors_header(file)[0] for file in files if file.endswith(".safetensors")]
    held: int = sum(prod(entry["shape"]) for header in headers for entry in header.values())
    if held:
        return 4 * held
    return 2 * sum(os.path.getsize(file) for file in files if file.endswith(".bin"))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
