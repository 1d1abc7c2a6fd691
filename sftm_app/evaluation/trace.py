"""Record one short forward pass of a text model: what goes into its modules and what comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sftm_app.architecture.owners import kind_of

# Different lengths, so that the shape of a tensor tells an encoder's states from a decoder's.
N_TOKENS, N_ANSWER = 7, 5


@dataclass(frozen=True, eq=False)
class Probe:
    """A short forward pass.

    Attributes:
        ids: the tokens that are read, (1, N_TOKENS), all different.
        run: does the pass.
    """

    ids: Tensor
    run: Callable[[], object]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        at: when it ended, counted in module entries and exits.
        module: the module.
        input, output: its first tensors; (1, tokens, width) for a module that works token by token.
    """

    at: int
    module: nn.Module
    input: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class Nudge:
    """A change that a trace adds to some columns of a module's output."""

    module: nn.Module
    columns: slice
    delta: Tensor


@dataclass(frozen=True, eq=False)
class Trace:
    """What happened in one pass, in order.

    Attributes:
        norms, linear: calls of norms and of linear maps.
        tables: calls of embeddings that look the tokens up.
        layer: calls of the layer that is examined.
        entered: what went into every module, and when.
    """

    norms: list[Call] = field(default_factory=list)
    linear: list[Call] = field(default_factory=list)
    tables: list[Call] = field(default_factory=list)
    layer: list[Call] = field(default_factory=list)
    entered: list[tuple[int, Tensor]] = field(default_factory=list)

    def norms_before(self, at: int, width: int) -> list[Call]:
        """Calls of norms over tokens of this width, the latest first."""
        norms = [norm for norm in self.norms if norm.input.ndim == 3 and norm.input.shape[-1] == width]
        return [norm for norm in reversed(norms) if norm.at < at]

    def outputs(self, start: int, stop: int) -> list[Tensor]:
        """What linear maps and norms put out between two moments."""
        return [call.output for call in (*self.linear, *self.norms) if start < call.at < stop]


def probe(network: Any, n_words: int) -> Probe:
    """Prepare a short pass.

    Args:
        network: a text model of transformers.
        n_words: how many tokens its tokenizer knows.
    """
    config = network.config.get_text_config()
    special = [getattr(config, f"{role}_token_id", None) for role in ("pad", "bos", "eos")]
    known = [i for i in range(min(n_words, config.vocab_size)) if i not in special]
    step = max(1, len(known) // N_TOKENS)
    chosen = (known * N_TOKENS)[::step][: N_TOKENS - 1]
    # Some classes look for the end of the text.
    end = special[2] if isinstance(special[2], int) else known[-1]
    ids = torch.tensor([[*chosen, end]], device=network.device)
    if hasattr(network, "get_text_features"):
        return Probe(ids, partial(network.get_text_features, input_ids=ids))
    # A class without a head that writes makes the decoder's tokens itself.
    if "decoder_input_ids" in inspect.signature(network.forward).parameters and network.can_generate():
        return Probe(ids, partial(network, input_ids=ids, decoder_input_ids=ids[:, :N_ANSWER]))
    return Probe(ids, partial(network, input_ids=ids))


def record(network: Any, layer: nn.Module, probe: Probe, nudge: Nudge | None = None) -> Trace:
    """Run the probe with hooks on every module.

    Args:
        network: the model; nobody else may use it meanwhile.
        layer: the module that is examined.
        probe: the pass.
        nudge: what to add to the output of one module.
    """
    trace = Trace()
    n_steps = 0

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal n_steps
        n_steps += 1
        given = first_tensor(args, kwargs)
        if given is not None and given.is_floating_point():
            trace.entered.append((n_steps, _by_token(given)))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        given, made = first_tensor(args, kwargs), first_tensor(output if isinstance(output, tuple) else (output,), {})
        if given is None or made is None:
            return None
        if nudge is not None and module is nudge.module:
            made = made.clone()
            made[..., nudge.columns] += nudge.delta.reshape(made[..., nudge.columns].shape)
            output = (made, *output[1:]) if isinstance(output, tuple) else made
        call = Call(n_steps, module, _by_token(given), _by_token(made))
        kind = kinds[module]
        if kind == "norm":
            trace.norms.append(call)
        elif kind.startswith("linear"):
            trace.linear.append(call)
        elif kind == "embedding" and torch.equal(given, probe.ids):  # positions are looked up in embeddings too
            trace.tables.append(call)
        if module is layer:
            trace.layer.append(call)
        return output

    kinds = {m: kind_of(m, "weight", (1, 1)) if not any(m.children()) else "" for m in network.modules()}
    handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in kinds]
    handles += [m.register_forward_hook(leave, with_kwargs=True) for m in kinds if kinds[m] or m is layer]
    try:
        probe.run()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _by_token(tensor: Tensor) -> Tensor:
    # Some classes flatten the tokens of all texts into rows (OPT, routers).
    flat = tensor.ndim == 2 and tensor.shape[0] in (N_TOKENS, N_ANSWER) and tensor.is_floating_point()
    return tensor[None] if flat else tensor


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The first tensor among the arguments of a call."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
