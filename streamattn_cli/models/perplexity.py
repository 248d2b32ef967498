"""What approximate attention does to a language model: it reads a text several times side by side, once exactly and once for
each method and budget, whose layers are answered in constant memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamattn_cli.engine.jobs.ceremony import metering
from streamattn_cli.engine.planning.resolve import budgets_in_rows
from streamattn_cli.engine.watch.events import Listener, Note
from streamattn_cli.engine.watch.signals import Interrupts
from streamattn_cli.errors import UsageError
from streamattn_cli.models.footprint import (
    SLACK,
    SLICE,
    began_layer,
    chunk_bytes,
    kept_bytes,
    logit_bytes,
    method_bytes,
    reference_bytes,
)  # fmt: skip
from streamattn_cli.models.interface import Answerer, ExactRows, LayerFacts, Sketched, answered_by, told
from streamattn_cli.models.load import Found, Model, find_model
from streamattn_cli.models.nats import Perplexity, Reading
from streamattn_cli.models.rotary import rope_of
from streamattn_cli.models.settings import ReadingSettings, chosen_layers
from streamattn_cli.models.survey import Layer, survey
from streamattn_cli.models.text import token_ids
from streamattn_cli.sketches import registry
from streamattn_cli.versions import versions

EXACT = "exact"


@dataclass(frozen=True)
class Asked:
    """What to do: methods and budgets, layers, rows of a step, settings of the methods beside them, positions at which whole
    distributions are compared, and how many rows exact attention looks back (None: all)."""

    methods: Sequence[str]
    budgets: Sequence[int]
    layers: Sequence[int]
    chunk: int = 512
    samples: int = 256
    settings: dict | None = None
    seed: int = 0
    reference: int | None = None


class _Trial:
    """One reading under way: what answers each layer, and the figures so far."""

    def __init__(
        self, method: str, rows: int | None, settings: dict, layers: frozenset[int], tokens: int, reference: int | None = None
    ):  # fmt: skip
        self.method, self._rows = method, rows
        self._reference = reference
        self._settings, self._layers, self._tokens = settings, layers, tokens
        self._answerers: dict[int, Answerer] = {}
        self._nats: list[np.ndarray] = []
        self._kl: list[float] = []
        self._agree: list[bool] = []
        self._seconds = 0.0

    def __call__(self, facts: LayerFacts) -> Answerer:
        """What answers this layer: see interface.Reading."""
        if facts.index not in self._answerers:
            sketched = self.method != EXACT and facts.index in self._layers
            exact = ExactRows(self._tokens, self._reference if facts.index in self._layers else None)
            self._answerers[facts.index] = Sketched(**self._settings) if sketched else exact
        return self._answerers[facts.index]

    def warm(self, model: Model, surveyed: dict[int, Layer], listener: Listener) -> None:
        """Compile or load the kernels of the method, before memory is measured. CannotMeet for layers it does not know."""
        if self.method != EXACT:
            variants = {json.dumps(v := told(surveyed[at].facts), default=repr): v for at in self._layers}
            for variant in variants.values():
                began_layer(model.shapes, variant | self._settings).warm(listener)

    def read(self, network: Any, ids: Any, first: int) -> Any:
        """The next tokens ids (n,), of which the first has this number; logits (n, vocabulary) of the tokens after them."""
        import torch

        began = time.monotonic()
        positions = torch.arange(first, first + len(ids))[None]
        with torch.inference_mode(), answered_by(self):
            logits = network(input_ids=ids[None], position_ids=positions, use_cache=False).logits[0]
        self._seconds += time.monotonic() - began
        return logits

    def observe(self, logits: Any, following: Any) -> None:
        """Take down the nats of the tokens that did follow."""
        for a in range(0, len(following), SLICE):
            next_ones = following[a : a + SLICE, None]
            self._nats.append(-_logs(logits[a : a + len(next_ones)]).gather(1, next_ones)[:, 0].numpy())

    def compare(self, exact: Any, logits: Any, sampled: Any) -> None:
        """Take down how far the distributions at sampled rows (n,) of the logits are from the exact ones, logs (n, words)."""
        for a in range(0, len(sampled), SLICE):
            truth, mine = exact[a : a + SLICE], _logs(logits[sampled[a : a + SLICE]])
            self._kl += (truth.exp() * (truth - mine)).sum(dim=1).tolist()
            self._agree += (truth.argmax(dim=1) == mine.argmax(dim=1)).tolist()

    def finish(self) -> Reading:
        """The figures so far."""
        held = self._answerers
        layers = (each.layer for at in sorted(self._layers) if isinstance(each := held.get(at), Sketched))
        first = next(layers, None)
        return Reading(
            self.method, self._rows, first.facts() if first else {}, np.concatenate(self._nats), self._kl, self._agree,
            sum(held[at].nbytes for at in self._layers if at in held), self._seconds,
        )  # fmt: skip


def text_bytes(found: Found, tokens: int, asked: Asked) -> int:
    """What reading so many tokens takes beside the weights. Raises the errors of CausalAttention for what is asked."""
    shapes, chunk = found.shapes, asked.chunk
    layers = frozenset(range(len(found.types)))
    needed = SLACK + logit_bytes(shapes, chunk, asked.samples) + chunk_bytes(shapes, chunk, tokens)
    needed += reference_bytes(shapes, asked.reference, chunk) + kept_bytes(shapes, layers, chunk, tokens)
    for _, _, settings in _settings(asked):
        needed += kept_bytes(shapes, layers - {*asked.layers}, chunk, tokens)
        needed += method_bytes(shapes, asked.layers, chunk, settings)
    return needed


def run_perplexity(
    name: str, texts: Sequence[str], given: ReadingSettings, tell: Callable[[Perplexity], None], listener: Listener,
    interrupts: Interrupts,
) -> Perplexity:  # fmt: skip
    """The command. Raises the errors of loading a model, UsageError, MemoryBudget, and those of `perplexity_of`."""
    methods = check_methods(given.methods)
    known = find_model(name, given.threads)
    ids = token_ids(known.tokenizer, texts, given.tokens, least=2)
    layers = chosen_layers(given.layer, name, known.global_layers, len(known.types))
    beside = {"effort": given.effort, "threads": given.threads, "memory": given.memory}
    budgets, notes = budgets_in_rows(given.resident_rows, len(ids))
    for note in notes:
        listener(Note(note))
    asked = Asked(methods, budgets, layers, given.chunk, given.samples, beside, given.seed, given.reference_window)
    model = known.load(given.memory, text_bytes(known, len(ids), asked), f"reading {len(ids)} tokens")
    return perplexity_of(model, ids, asked, texts, tell, listener, interrupts)


def perplexity_of(
    model: Model, ids: np.ndarray, asked: Asked, texts: Sequence[str], tell: Callable[[Perplexity], None],
    listener: Listener, interrupts: Interrupts,
) -> Perplexity:  # fmt: skip
    """Read the tokens ids (n,) int64. tell(found so far) is called after each chunk; the listener hears of kernels that are
    compiled. Raises UsageError for layers that are not there, Interrupted, and the errors of CausalAttention."""
    import torch

    layers, tokens = frozenset(asked.layers), torch.from_numpy(ids)
    chosen = np.sort(np.random.default_rng(asked.seed).permutation(len(ids) - 1)[: asked.samples])
    projected = text_bytes(model, len(ids), asked)
    trials, notes = _trials(model, asked, layers, len(ids))
    surveyed = survey(model, len(model.types) - 1)
    for trial in trials:
        trial.warm(model, surveyed, listener)
    context = getattr(model.network.config.get_text_config(), "max_position_embeddings", None)
    with metering(listener, interrupts) as work:
        for a in range(0, len(ids), asked.chunk):
            interrupts.check()
            b = min(a + asked.chunk, len(ids))
            _read_chunk(model, trials, tokens, a, b, torch.from_numpy(chosen[(chosen >= a) & (chosen < b)] - a))
            found = Perplexity(
                model.name, tuple(texts), b, tuple(sorted(layers)), context, _edges(b),
                tuple(trial.finish() for trial in trials), work.seconds,
                memory={"reserved": work.meter.baseline, "peak": work.meter.peak(), "projected": projected}, notes=notes,
                reference_window=asked.reference, versions=versions("numpy", "numba", "torch", "transformers"),
            )  # fmt: skip
            tell(found)
    return found


def _read_chunk(model: Model, trials: Sequence[_Trial], tokens: Any, a: int, b: int, sampled: Any) -> None:
    """Every trial reads tokens [a, b), the exact one first; at the sampled ones of these the others are compared with it."""
    truth = None
    for trial in trials:
        logits = trial.read(model.network, tokens[a:b], a)
        trial.observe(logits, tokens[a + 1 : b + 1])
        if truth is None:
            truth = _logs(logits[sampled])
        else:
            trial.compare(truth, logits, sampled)
        del logits  # or the next trial's would stand beside them


def _logs(logits: Any) -> Any:
    """Log probabilities (n, vocabulary) float32."""
    import torch

    return torch.log_softmax(logits.float(), dim=1)


def check_methods(words: str) -> list[str]:
    """The names in `--methods`; UsageError for those that are no methods, or that cannot answer a layer step by step."""
    names = [word.strip() for word in words.split(",") if word.strip()]
    for name in names:
        if name == EXACT:
            raise UsageError("--methods exact: exact attention is always read beside the others; omit it")
        registry.find(name)
    if not names:
        raise UsageError("--methods: give names of methods with commas between them, such as nystrom,window")
    return names


def _settings(asked: Asked) -> Iterator[tuple[str, int, dict]]:
    """Each method and budget, and the settings of its CausalAttention."""
    for method in asked.methods:
        for rows in asked.budgets:
            yield method, rows, {"method": method, "resident_rows": rows, "seed": asked.seed, **(asked.settings or {})}


def _trials(model: Model, asked: Asked, layers: frozenset[int], tokens: int) -> tuple[list[_Trial], tuple[str, ...]]:
    """The exact reading, and one for each method and budget."""
    rope, notes = rope_of(model.network, model.shapes.dim), []
    if rope and "nystrom" in asked.methods:
        notes.append(f"rope {rope} is that of the model")
    trials = [_Trial(EXACT, None, {}, layers, tokens, asked.reference)]
    for method, rows, settings in _settings(asked):
        if rope and "rope" in registry.find(method).options:
            settings["rope"] = rope
        trials.append(_Trial(method, rows, settings, layers, tokens))
    return trials, tuple(notes)


def _edges(tokens: int) -> tuple[int, ...]:
    """Positions that are powers of two, from 256 on, between the first token and the end."""
    inside = [1 << power for power in range(8, 40) if 1 << power < tokens]
    return (1, *inside, tokens)
