"""The map of a model: its weight matrices, laid out as layers x modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sftm_app.architecture.blocks import Place, block_of, places_of
from sftm_app.architecture.roles import Part, assign
from sftm_app.preflight.preflight import Preflight


@dataclass(frozen=True)
class MapLayer:
    """One linear map of the model.

    Attributes:
        name: the tensor's name, and the part's label in brackets.
        row, column: its place on the map: the block, and the module in it.
        shape: (m, n).
        tensor: the tensor in the base that holds it.
        part: where in the tensor.
        members: indices of the tasks that hold it.
        place: where in the model it lies.
    """

    name: str
    row: str
    column: str
    shape: tuple[int, int]
    tensor: str
    part: Part
    members: tuple[int, ...]
    place: Place = Place()


# T5 counts the sublayers of a block: "block.0.layer.1.DenseReluDense.wi".
_SUBLAYER = re.compile(r"^layer\.\d+\.")


def map_layers(found: Preflight, split_fused: bool = False) -> tuple[MapLayer, ...]:
    """List every weight matrix that is merged.

    Args:
        found: base and tasks.
        split_fused: as in Recipe; list the maps in a matrix that holds several of them one by one.

    Returns:
        Layers in the order of the model: first those outside blocks, then the encoder's, then the decoder's, blocks by
        number. No two have the same place.
    """
    layers = []
    places = places_of(found.base.tensors, found.architecture.owners)
    for name, info in found.base.tensors.items():
        assignment = assign(info, found.architecture.owners.get(name), split_fused)
        members = tuple(i for i, match in enumerate(found.matches) if match.source(name))
        for part in assignment.parts if members else ():
            row, column = place(name)
            shape = part.shape_in(info.shape)
            layers.append(
                MapLayer(part.name_in(name), row, part.name_in(column), shape, name, part, members, places[name])
            )
    return tuple(sorted(_without_sublayers(layers), key=lambda layer: _order(layer.name)))


def place(name: str) -> tuple[str, str]:
    """The row (block) and column (module in the block) of a tensor's name.

    "encoder.layer.3.attention.output.dense.weight" -> ("encoder.layer.3", "attention.output.dense"). A name without a
    number is in the row "outside".
    """
    stem = name.removesuffix(".weight")
    block = block_of(name)
    if block is None:
        return "outside", stem
    return block, stem[len(block) + 1 :] or stem


def _without_sublayers(layers: Sequence[MapLayer]) -> list[MapLayer]:
    """Drop the number of the sublayer from columns, so that encoder and decoder share them.

    Keeps all columns where two layers would then have the same place: the convolutions of a ResNet differ only in that
    number.
    """
    shorter = [replace(layer, column=_SUBLAYER.sub("", layer.column)) for layer in layers]
    return shorter if len({(layer.row, layer.column) for layer in shorter}) == len(layers) else list(layers)


def _order(name: str) -> tuple[object, ...]:
    """Natural order: numbers by value; names without a block first, decoders after encoders."""
    parts = re.split(r"(\d+)", name)
    in_order = (int(part) if part.isdigit() else part for part in parts)
    return (block_of(name) is not None, "decoder" in name.split("."), *in_order)


def short_rows(rows: Sequence[str]) -> list[str]:
    """Rows as shown, without what all blocks have in common.

    The number alone if that is enough ("encoder.layer.3" -> "3"), otherwise with where the block is
    ("text_model.encoder.layers.3" -> "text_model.3").
    """
    split = {row: row.split(".") for row in rows if row != "outside"}
    ways = [parts[:-1] for parts in split.values()]
    if len({tuple(way) for way in ways}) <= 1:
        return [row.rpartition(".")[2] if row in split else row for row in rows]
    n_first, n_last = _shared(ways), 0
    if not any(len(way) == n_first for way in ways):
        n_last = _shared([way[n_first:][::-1] for way in ways])
        n_last = min(n_last, min(len(way) - n_first for way in ways) - 1)
    return [
        ".".join([*split[row][n_first : len(split[row]) - 1 - n_last], split[row][-1]]) if row in split else row
        for row in rows
    ]


def _shared(ways: Sequence[Sequence[str]]) -> int:
    """How many leading words all of them have in common."""
    n = 0
    while all(len(way) > n for way in ways) and len({way[n] for way in ways}) == 1:
        n += 1
    return n


def short_columns(columns: Sequence[str]) -> list[str]:
    """Columns as shown: each cut to the shortest ending that no other has."""
    shown = []
    for column in columns:
        parts = column.split(".")
        for n in range(1, len(parts) + 1):
            ending = ".".join(parts[-n:])
            if n == len(parts) or not any(
                other != column and (other == ending or other.endswith("." + ending)) for other in columns
            ):
                break
        shown.append(ending)
    return shown


# What a column is, by the end of its lower-case name; the first match counts. For display only.
_ATTENTION = r"(?:attn|attention|self|selfattention|encdecattention|crossattention)\."
_KINDS = tuple(
    (re.compile(rf"(?:^|\.)(?:{pattern})$"), label)
    for pattern, label in (
        (r"(?:.*\.)?patch_embed(?:ding|dings|der)?(?:\.proj|\.projection)?", "patch embedding"),
        (r"query_key_value|qkv|qkv_proj|in_proj|wqkv|c_attn", "query, key, value"),
        (r"q|query|q_proj|query_proj|q_lin|wq", "query"),
        (r"k|key|k_proj|key_proj|k_lin|wk", "key"),
        (r"v|value|v_proj|value_proj|v_lin|wv", "value"),
        (rf"(?:\w+_)?{_ATTENTION}(?:o|out|output|[oc]_proj|out_proj|out_lin|proj|dense|output\.dense|wo)", "output"),
        (r"gate_up_proj|(?:feed_forward|experts|mlp)\.gate_up", "gate and up"),
        (r"gate_proj|wi_0|experts\.\d+\.w1|feed_forward\.w1", "gate"),
        (r"up_proj|wi|wi_1|experts\.\d+\.w3|feed_forward\.w3", "up"),
        (r"intermediate\.dense|fc1|c_fc|ffn\.lin1|linear1|dense_h_to_4h|intermediate_dense|fc_in", "up"),
        (r"down_proj|densereludense\.wo|experts\.\d+\.w2|feed_forward\.w2", "down"),
        (r"fc2|mlp\.c_proj|ffn\.lin2|linear2|dense_4h_to_h|fc_out|(?<!attention\.)output\.dense|output_dense", "down"),
        (r"\w*moe\.gate|\w*mlp\.gate|router|router\.classifier", "router"),
        (r"pooler\.dense", "pooler"),
        (r"lm_head", "language model head"),
    )
)
_CROSS = re.compile(r"encdecattention|encoder_attn|cross_?attn|cross_?attention")
_EXPERT = re.compile(r"\bexperts?\.(\d+)\.")
_PART = re.compile(r" \[(.+)\]$")
_PART_WORDS = re.compile(r"(?:expert (\d+) ?)?(.*)")


def kind_labels(columns: Sequence[str]) -> list[str]:
    """Columns as people call them ("attention.attention.query" -> "query"), one label each, no label twice.

    A column with an unknown name, or with the same label as another, is shown as short_columns does.
    """
    short = short_columns(columns)
    shown = [_kind(column) or name for column, name in zip(columns, short, strict=True)]
    while twice := {label for label, count in Counter(shown).items() if count > 1}:
        changed = [name if label in twice else label for label, name in zip(shown, short, strict=True)]
        if changed == shown:
            break
        shown = changed
    return shown


def _kind(column: str) -> str | None:
    part = _PART.search(column)
    whole = (column[: part.start()] if part else column).lower()
    label = next((label for pattern, label in _KINDS if pattern.search(whole)), None)
    if label is None:
        return None
    # A part of a fused matrix has its own label ("attn.c_attn [query]"), after the number of its expert if any.
    said = _PART_WORDS.fullmatch(part[1]) if part else None
    expert = _EXPERT.search(whole)
    number = (said and said[1]) or (expert and expert[1])
    prefix = "cross " if _CROSS.search(whole) else "shared " if "shared_expert" in whole else ""
    return prefix + ((said and said[2]) or label) + (f", expert {number}" if number else "")
