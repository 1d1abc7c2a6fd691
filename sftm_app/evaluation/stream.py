"""How a layer stands to the residual stream of a text model: told from short forward passes, never from names.

The states of the stream are sums: each is an earlier one plus what a layer puts out. So a layer writes to the stream
where something added to its output arrives unchanged in a sum, and a tensor is a state where a later one is that tensor
plus what a layer puts out. A layer reads the stream where its input is a state, or what a norm makes of one. Elhage et
al., "A Mathematical Framework for Transformer Circuits" (2021), for the stream as what all layers share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sftm_app.architecture.owners import kind_of
from sftm_app.architecture.roles import Part

# Of two lengths, so that an encoder's states are told from a decoder's.
N_TOKENS, N_ANSWER = 7, 5
# Relative: of differences between states, which lose digits, and of states themselves.
SAME, EXACT = 1e-2, 1e-5
# A layer's output may pass a norm before it is added to the stream (Gemma), and hardly more than one.
MAX_NORMS_PASSED = 2
# So many modules are entered within one block at most, between a state and the next.
N_BEHIND = 40


@dataclass(frozen=True, eq=False)
class Gain:
    """What a norm multiplies with: weight (width,), after taking the mean off where it is `centred` (LayerNorm)."""

    weight: Tensor
    centred: bool

    def back(self, direction: Tensor) -> Tensor:
        """What a direction (width,) that is read behind the norm reads in front of it, but for the norm's scale."""
        return self._less_mean(direction * self.weight.to(direction))

    def forth(self, direction: Tensor) -> Tensor:
        """What a direction (width,) that is written in front of the norm is behind it, but for the norm's scale."""
        return self._less_mean(direction) * self.weight.to(direction)

    def _less_mean(self, direction: Tensor) -> Tensor:
        return direction - direction.mean() if self.centred else direction


@dataclass(frozen=True, eq=False)
class Table:
    """Token vectors (tokens, width), and the gain of the norm between the stream and them, None where there is none."""

    vectors: Tensor
    gain: Gain | None = None


@dataclass(frozen=True, eq=False)
class Stream:
    """What was seen of one layer. ran: it takes part in reading text.

    embedding: the input embedding, (tokens, width), None where none was seen. reads: its input is a state of the
    stream, behind the norm of gain `read_gain` if that is not None. writes: its output is added to the stream, behind
    the norms of `write_gains`. head: the output embedding that reads the stream it writes to, if any. to_words: it is
    the output embedding itself.
    """

    ran: bool = False
    embedding: Tensor | None = None
    reads: bool = False
    read_gain: Gain | None = None
    writes: bool = False
    write_gains: tuple[Gain, ...] = ()
    head: Table | None = None
    to_words: bool = False


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a module: when it ended, the tensor that went in and the one that came out."""

    at: int
    module: nn.Module
    input: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class _Trace:
    """One pass: calls of norms, of linear maps and of embeddings of the tokens.

    layer: those of the layer itself. entered: what went into every module, with the time, in order. All are (1, tokens,
    width) where one vector a token went through.
    """

    norms: list[_Call]
    linear: list[_Call]
    tables: list[_Call]
    layer: list[_Call]
    entered: list[tuple[int, Tensor]]

    def norms_before(self, at: int, width: int) -> list[_Call]:
        """Norms of one vector a token, the latest first."""
        norms = [norm for norm in self.norms if norm.input.ndim == 3 and norm.input.shape[-1] == width]
        return [norm for norm in reversed(norms) if norm.at < at]


@dataclass(frozen=True, eq=False)
class _Nudge:
    """What is added to some columns of a module's output."""

    module: nn.Module
    columns: slice
    delta: Tensor


@torch.inference_mode()
def stream_of(network: Any, module: nn.Module, part: Part, n_words: int) -> Stream:
    """How one linear map of a text model, `part` of what `module` multiplies with, stands to the stream.

    network: a model of transformers that nobody else uses meanwhile. n_words: how many tokens its tokenizer knows.
    """
    probe = _probe(network, n_words)
    trace = _traced(network, module, probe)
    if not trace.layer:
        return Stream()
    if not trace.tables:
        return Stream(ran=True)
    table, output = _weight(trace.tables[0].module), trace.layer[0].output
    width = table.shape[1]
    rows = slice(*(part.rows or (0, output.shape[-1])))
    gains = None
    if rows.stop - rows.start == width and output.ndim == 3:
        gains = _writing(trace, rows, partial(_traced, network, module, probe))
    # What writes reads something of a block's own; a norm in front of it (BitNet) is not one of the stream.
    reads, gain = (False, None) if gains is not None else _reading(trace, width)
    head = _head(trace, table)
    if head is None:
        return Stream(True, table, reads, gain, gains is not None, gains or ())
    read_by = None
    if gains is not None and head.input.shape[1] == output.shape[1]:
        read_by = Table(_weight(head.module), _gain_in_front(trace, head, width))
    return Stream(True, table, reads, gain, gains is not None, gains or (), read_by, head.module is module)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


@dataclass(frozen=True, eq=False)
class _Probe:
    """A short forward pass, and the tokens (1, N_TOKENS) that it reads, which differ."""

    ids: Tensor
    run: Callable[[], object]


def _probe(network: Any, n_words: int) -> _Probe:
    config = network.config.get_text_config()
    special = [getattr(config, f"{role}_token_id", None) for role in ("pad", "bos", "eos")]
    known = [i for i in range(min(n_words, config.vocab_size)) if i not in special]
    step = max(1, len(known) // N_TOKENS)
    chosen = (known * N_TOKENS)[::step][: N_TOKENS - 1]
    # Some classes look for the end of the text.
    end = special[2] if isinstance(special[2], int) else known[-1]
    ids = torch.tensor([[*chosen, end]], device=network.device)
    if hasattr(network, "get_text_features"):
        return _Probe(ids, partial(network.get_text_features, input_ids=ids))
    # A class without a head that writes makes the decoder's tokens itself.
    if "decoder_input_ids" in inspect.signature(network.forward).parameters and network.can_generate():
        return _Probe(ids, partial(network, input_ids=ids, decoder_input_ids=ids[:, :N_ANSWER]))
    return _Probe(ids, partial(network, input_ids=ids))


def _traced(network: Any, module: nn.Module, probe: _Probe, nudge: _Nudge | None = None) -> _Trace:
    """One pass, with something added to the output of a module if asked."""
    trace = _Trace([], [], [], [], [])
    n_steps = 0

    def enter(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal n_steps
        n_steps += 1
        given = _first(args, kwargs)
        if given is not None and given.is_floating_point():
            trace.entered.append((n_steps, by_token(given)))

    def leave(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        given, made = _first(args, kwargs), _first(output if isinstance(output, tuple) else (output,), {})
        if given is None or made is None:
            return None
        if nudge is not None and called is nudge.module:
            made = made.clone()
            made[..., nudge.columns] += nudge.delta.reshape(made[..., nudge.columns].shape)
            output = (made, *output[1:]) if isinstance(output, tuple) else made
        call = _Call(n_steps, called, by_token(given), by_token(made))
        kind = kinds[called]
        if kind == "norm":
            trace.norms.append(call)
        elif kind.startswith("linear"):
            trace.linear.append(call)
        elif kind == "embedding" and torch.equal(given, probe.ids):  # positions go through an embedding too
            trace.tables.append(call)
        if called is module:
            trace.layer.append(call)
        return output

    def by_token(tensor: Tensor) -> Tensor:
        # Some classes take the tokens of all texts as rows (OPT, routers).
        flat = tensor.ndim == 2 and tensor.shape[0] in (N_TOKENS, N_ANSWER) and tensor.is_floating_point()
        return tensor[None] if flat else tensor

    kinds = {m: kind_of(m, "weight", (1, 1)) if not any(m.children()) else "" for m in network.modules()}
    handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in kinds]
    handles += [m.register_forward_hook(leave, with_kwargs=True) for m in kinds if kinds[m] or m is module]
    try:
        probe.run()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _writing(plain: _Trace, rows: slice, traced: Callable[[_Nudge], _Trace]) -> tuple[Gain, ...] | None:
    """The gains of the norms between a layer's output and the stream; None where it does not write to the stream."""
    source, columns, own = plain.layer[0].module, rows, plain.layer[0].output[..., rows]
    gains: tuple[Gain, ...] = ()
    generator = torch.Generator().manual_seed(0)
    while len(gains) <= MAX_NORMS_PASSED:
        scale = own.square().mean().sqrt().clamp_min(1e-3)
        delta = torch.randn(own.shape, generator=generator).to(own) * scale
        nudged = traced(_Nudge(source, columns, delta))
        pairs = zip(plain.entered, nudged.entered, strict=False)
        moved = [a for (_, a), (_, b) in pairs if a.shape == own.shape and _parallel(b - a, delta, SAME)]
        if any(not _parallel(state, own, EXACT) for state in moved):
            return gains
        # Nothing was added yet: a norm may stand between, and what it gives may be what is added (Gemma 2).
        norm = next((c for c in plain.norms if c.input.shape == own.shape and _parallel(c.input, own, EXACT)), None)
        if norm is None:
            return None
        gains += (gain_of(norm.module, own.shape[-1]),)
        source, columns, own = norm.module, slice(None), norm.output
    return None


def _reading(trace: _Trace, width: int) -> tuple[bool, Gain | None]:
    """Whether the layer's input is a state of the stream, and the gain of the norm that it went through."""
    for call in trace.layer:
        if call.input.shape[-1] != width:
            continue
        for norm in trace.norms_before(call.at, width):
            if _holds(norm.output, call.input):
                return True, None if _gives_state(trace, norm) else gain_of(norm.module, width)
        if _is_state(trace, call.input, call.at):
            return True, None
    return False, None


def _gives_state(trace: _Trace, norm: _Call) -> bool:
    """Whether a norm's output is itself what the next layer's output is added to (post-norm, as in BERT), rather than
    its input (pre-norm, as in GPT-2 and T5)."""
    for tensor, state in ((norm.output, True), (norm.input, False)):
        if _is_state(trace, tensor, norm.at):
            return state
    # Nothing is added behind the last norm of a model: it is as the one before it.
    before = [other for other in trace.norms if other.at < norm.at and other.input.shape == norm.input.shape][-2:]
    return any(_misfit(norm.input - o.output, _outputs(trace, o.at, norm.at)) < SAME for o in before)


def _is_state(trace: _Trace, tensor: Tensor, at: int) -> bool:
    """Whether something that enters a module soon after is the tensor plus what a layer or a norm put out since."""
    behind = [(time, state) for time, state in trace.entered if time > at and state.shape == tensor.shape]
    return any(_misfit(state - tensor, _outputs(trace, at, time)) < SAME for time, state in behind[:N_BEHIND])


def _outputs(trace: _Trace, start: int, stop: int) -> list[Tensor]:
    return [call.output for call in (*trace.linear, *trace.norms) if start < call.at < stop]


def _misfit(difference: Tensor, added: Sequence[Tensor]) -> float:
    """How far the difference of two states is from the nearest of the outputs, relative to that."""
    fitting = (y for y in added if y.shape == difference.shape)
    return min((float((difference - y).norm() / y.norm().clamp_min(1e-12)) for y in fitting), default=torch.inf)


def _head(trace: _Trace, table: Tensor) -> _Call | None:
    """The output embedding: the last linear map, behind every norm, when its output is one number a token."""
    last = max((norm.at for norm in trace.norms), default=0)
    found = [call for call in trace.linear if call.at > last and _weight(call.module).shape == table.shape]
    return found[-1] if found else None


def _gain_in_front(trace: _Trace, head: _Call, width: int) -> Gain | None:
    """The gain of the norm whose output the output embedding reads; None where that output is the stream itself."""
    for norm in trace.norms_before(head.at, width):
        if _holds(norm.output, head.input):
            return None if _gives_state(trace, norm) else gain_of(norm.module, width)
    return None


def gain_of(norm: nn.Module, width: int) -> Gain:
    """What a norm multiplies with, from what it makes of two vectors, because its weight may stand for more (Gemma: 1 +
    weight)."""
    example = next(norm.parameters(), torch.empty(0))
    signs = torch.ones(1, 1, width, device=example.device)
    signs[..., 1::2] = -1
    centred = torch.allclose(norm(signs + 1), norm(signs), rtol=1e-3, atol=1e-5)
    spread = signs - signs.mean() if centred else signs
    odd = (norm(signs) - norm(-signs)) / 2  # without the norm's bias
    return Gain((odd * spread.square().mean().sqrt() / spread).reshape(-1), centred)


def _holds(states: Tensor, found: Tensor) -> bool:
    """Whether a layer's input is the states (1, tokens, width), a multiple of them, or those of one token."""
    if found.numel() == states.numel():
        return _parallel(found.reshape(states.shape), states, EXACT)
    if found.shape == states[:, 0].shape:
        return any(_parallel(found, states[:, i], EXACT) for i in range(states.shape[1]))
    return False


def _parallel(left: Tensor, right: Tensor, tolerance: float) -> bool:
    """Whether left is a positive multiple of right."""
    if left.shape != right.shape:
        return False
    factor = (left * right).sum() / right.square().sum().clamp_min(1e-30)
    return bool(factor > 0 and (left - factor * right).norm() <= tolerance * left.norm())
