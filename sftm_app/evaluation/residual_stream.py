"""How a layer of a text model reads and writes the residual stream, found from short forward passes, never from names.

Each state of the stream is an earlier state plus what a layer puts out. A layer therefore writes to the stream if
something added to its output arrives unchanged in a sum, and a tensor is a state if a later tensor equals it plus what
a layer puts out. A layer reads the stream if its input is a state, or the output of a norm on one. See Elhage et al.,
"A Mathematical Framework for Transformer Circuits" (2021), for the stream as the channel that all layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sftm_app.architecture.roles import Part
from sftm_app.evaluation.trace import Call, Nudge, Trace, probe, record

# Relative tolerances: for differences of states, which lose digits, and for states themselves.
SAME, EXACT = 1e-2, 1e-5
# A layer's output may pass a norm before it is added to the stream (Gemma 2), rarely more than one.
MAX_NORMS_PASSED = 2
# How many modules are entered at most between a state and the next one.
MAX_ENTERED_BETWEEN = 40


@dataclass(frozen=True, eq=False)
class Gain:
    """What a norm does to a direction, apart from its scale.

    Attributes:
        weight: (width,), multiplied with each entry.
        centred: whether the norm subtracts the mean first (LayerNorm).
    """

    weight: Tensor
    centred: bool

    def before(self, direction: Tensor) -> Tensor:
        """What a direction (width,) that is read after the norm reads before it."""
        return self._centre(direction * self.weight.to(direction))

    def after(self, direction: Tensor) -> Tensor:
        """What a direction (width,) that is written before the norm becomes after it."""
        return self._centre(direction) * self.weight.to(direction)

    def _centre(self, direction: Tensor) -> Tensor:
        return direction - direction.mean() if self.centred else direction


@dataclass(frozen=True, eq=False)
class Table:
    """Token vectors (tokens, width). gain: of the norm between the stream and the table, if there is one."""

    vectors: Tensor
    gain: Gain | None = None


@dataclass(frozen=True, eq=False)
class Stream:
    """How one layer relates to the residual stream.

    Attributes:
        ran: whether the layer takes part in reading text.
        embedding: the input embedding, (tokens, width); None if none was found.
        reads: whether the layer's input is a state of the stream, or the output of a norm on one.
        read_gain: the gain of that norm.
        writes: whether the layer's output is added to the stream.
        write_gains: the gains of the norms that its output passes first.
        head: the output embedding that reads the stream the layer writes to, if there is one.
        is_head: whether the layer is the output embedding itself.
    """

    ran: bool = False
    embedding: Tensor | None = None
    reads: bool = False
    read_gain: Gain | None = None
    writes: bool = False
    write_gains: tuple[Gain, ...] = ()
    head: Table | None = None
    is_head: bool = False


@torch.inference_mode()
def stream_of(network: Any, module: nn.Module, part: Part, n_words: int) -> Stream:
    """How one linear map of a text model relates to the residual stream.

    Args:
        network: a model of transformers; nobody else may use it meanwhile.
        module: the module that owns the linear map.
        part: the linear map in the module's weight.
        n_words: how many tokens the tokenizer knows.
    """
    short = probe(network, n_words)
    trace = record(network, module, short)
    if not trace.layer:
        return Stream()
    if not trace.tables:
        return Stream(ran=True)
    embedding, output = _weight(trace.tables[0].module), trace.layer[0].output
    width = embedding.shape[1]
    rows = slice(*(part.rows or (0, output.shape[-1])))
    gains = None
    if rows.stop - rows.start == width and output.ndim == 3:
        gains = _write_gains(trace, rows, partial(record, network, module, short))
    # A layer that writes reads a tensor of its own block; a norm in front of it (BitNet) is not one of the stream.
    reads, read_gain = (False, None) if gains is not None else _reading(trace, width)
    head = _output_embedding(trace, embedding)
    read_by = None
    if head is not None and gains is not None and head.input.shape[1] == output.shape[1]:
        norm = _norm_in_front(trace, head, width)
        read_by = Table(_weight(head.module), None if norm is None else _pre_norm_gain(trace, norm, width))
    is_head = head is not None and head.module is module
    return Stream(True, embedding, reads, read_gain, gains is not None, gains or (), read_by, is_head)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _write_gains(plain: Trace, columns: slice, nudged: Callable[[Nudge], Trace]) -> tuple[Gain, ...] | None:
    """The gains of the norms between a layer's output and the stream; None if the layer does not write to it."""
    source, own = plain.layer[0].module, plain.layer[0].output[..., columns]
    gains: tuple[Gain, ...] = ()
    generator = torch.Generator().manual_seed(0)
    while len(gains) <= MAX_NORMS_PASSED:
        scale = own.square().mean().sqrt().clamp_min(1e-3)
        delta = torch.randn(own.shape, generator=generator).to(own) * scale
        pairs = zip(plain.entered, nudged(Nudge(source, columns, delta)).entered, strict=False)
        moved = [a for (_, a), (_, b) in pairs if a.shape == own.shape and _parallel(b - a, delta, SAME)]
        if any(not _parallel(state, own, EXACT) for state in moved):
            return gains
        # Not added to anything yet: a norm may come first, and its output may be what is added (Gemma 2).
        norm = next((c for c in plain.norms if c.input.shape == own.shape and _parallel(c.input, own, EXACT)), None)
        if norm is None:
            return None
        gains += (gain_of(norm.module, own.shape[-1]),)
        source, columns, own = norm.module, slice(None), norm.output
    return None


def _reading(trace: Trace, width: int) -> tuple[bool, Gain | None]:
    """Whether the layer's input comes from the stream, and the gain of the norm in between."""
    for call in trace.layer:
        if call.input.shape[-1] != width:
            continue
        norm = _norm_in_front(trace, call, width)
        if norm is not None:
            return True, _pre_norm_gain(trace, norm, width)
        if _is_state(trace, call.input, call.at):
            return True, None
    return False, None


def _norm_in_front(trace: Trace, call: Call, width: int) -> Call | None:
    """The norm whose output goes into a call."""
    return next((norm for norm in trace.norms_before(call.at, width) if _holds(norm.output, call.input)), None)


def _pre_norm_gain(trace: Trace, norm: Call, width: int) -> Gain | None:
    """The gain of a norm in front of a layer; None if the norm's output is itself a state (post-norm, as in BERT)."""
    return None if _gives_state(trace, norm) else gain_of(norm.module, width)


def _gives_state(trace: Trace, norm: Call) -> bool:
    """Whether the next layer's output is added to a norm's output (post-norm, as in BERT) or to its input (pre-norm, as
    in GPT-2 and T5)."""
    for tensor, state in ((norm.output, True), (norm.input, False)):
        if _is_state(trace, tensor, norm.at):
            return state
    # Nothing is added after a model's last norm: it works like the norm before it.
    before = [other for other in trace.norms if other.at < norm.at and other.input.shape == norm.input.shape][-2:]
    return any(_distance(norm.input - o.output, trace.outputs(o.at, norm.at)) < SAME for o in before)


def _is_state(trace: Trace, tensor: Tensor, at: int) -> bool:
    """Whether something that soon enters a module is the tensor plus what a layer or a norm has put out since."""
    later = [(time, state) for time, state in trace.entered if time > at and state.shape == tensor.shape]
    later = later[:MAX_ENTERED_BETWEEN]
    return any(_distance(state - tensor, trace.outputs(at, time)) < SAME for time, state in later)


def _distance(difference: Tensor, outputs: Sequence[Tensor]) -> float:
    """The relative distance from a difference of states to the nearest of the outputs."""
    fitting = (output for output in outputs if output.shape == difference.shape)
    return min((float((difference - o).norm() / o.norm().clamp_min(1e-12)) for o in fitting), default=torch.inf)


def _output_embedding(trace: Trace, embedding: Tensor) -> Call | None:
    """The last linear map, if it comes after every norm and puts out one number per token of the vocabulary."""
    last = max((norm.at for norm in trace.norms), default=0)
    found = [call for call in trace.linear if call.at > last and _weight(call.module).shape == embedding.shape]
    return found[-1] if found else None


def gain_of(norm: nn.Module, width: int) -> Gain:
    """The gain of a norm, from its outputs: its weight may mean something else (1 + weight in Gemma).

    Args:
        norm: a LayerNorm or RMSNorm of any class.
        width: of what it normalises.
    """
    example = next(norm.parameters(), torch.empty(0))
    signs = torch.ones(1, 1, width, device=example.device)
    signs[..., 1::2] = -1
    centred = torch.allclose(norm(signs + 1), norm(signs), rtol=1e-3, atol=1e-5)
    spread = signs - signs.mean() if centred else signs
    odd = (norm(signs) - norm(-signs)) / 2  # without the norm's bias
    return Gain((odd * spread.square().mean().sqrt() / spread).reshape(-1), centred)


def _holds(states: Tensor, found: Tensor) -> bool:
    """Whether a layer's input is the states (1, tokens, width), a multiple of them, or the state of one token."""
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
