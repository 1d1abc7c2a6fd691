"""LoRA files of other tools: one table of formats, recognised by the names of their tensors.

Each is read as what PEFT would save: pairs A (rank x in) and B (out x rank) at a module's path, and the factor on B A.
A format stands here only if its mapping is exact. Everything else is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sftm_app.weights.adapter_config import PEFT_PREFIX, AdapterConfig, parse_adapter_config

_HALVES = {"down": "A", "up": "B", "A": "A", "B": "B", "a": "A", "b": "B"}
_COMPONENT = r"(?P<component>text_encoder(?:_\d)?|unet|transformer|prior|decoder)\."


@dataclass(frozen=True)
class AdapterFormat:
    """How a tool names the tensors of a LoRA file.

    Attributes:
        name: the tool.
        factor: matches the name of a factor, with the groups `module`, `half` and perhaps `component`.
        mangled: dots in module paths are written as underscores.
        flipped: factors are stored transposed, A as in x rank and B as rank x out.
    """

    name: str
    factor: re.Pattern[str]
    mangled: bool = False
    flipped: bool = False


FORMATS = (
    AdapterFormat(
        "kohya",
        re.compile(r"lora_(?P<component>te\d?|unet|transformer)_(?P<module>.+)\.lora_(?P<half>down|up)\.weight"),
        mangled=True,
    ),
    AdapterFormat("diffusers", re.compile(_COMPONENT + r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")),
    AdapterFormat(
        "diffusers (before 0.22)",
        re.compile(_COMPONENT + r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<half>down|up)\.weight"),
    ),
    AdapterFormat("mlx-lm", re.compile(r"(?P<module>.+)\.lora_(?P<half>[ab])"), flipped=True),
)
# PEFT's names without its config: alpha and the rank rule are not in the file.
_PEFT = re.compile(re.escape(PEFT_PREFIX) + r".+\.lora_(embedding_)?[AB](\.[^.]+)?(\.weight)?")
# Other methods in files of the same tools. None of them is B A alone.
_OTHERS = {
    "dora_scale": "DoRA, which rescales every column",
    "lora_magnitude_vector": "DoRA, which rescales every column",
    "hada_w1_a": "LoHa (Hadamard products)",
    "lokr_w1": "LoKr (Kronecker products)",
    "lora_mid": "LoCon with a Tucker core (lora_mid)",
    "oft_blocks": "OFT (orthogonal maps)",
    "glora": "GLoRA",
}


@dataclass(frozen=True)
class Named:
    """What the names of an adapter's tensors stand for.

    Attributes:
        names: name in the file -> name as PEFT would write it, with the component in front of the module's path.
        alphas: module -> the name of the tensor that holds its alpha.
        components: what the file is for, such as "te" and "unet"; empty where it is for one model.
        problems: sentences on why the file cannot be merged.
    """

    format: AdapterFormat
    names: dict[str, str]
    alphas: dict[str, str] = field(default_factory=dict)
    components: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def recognise(names: Iterable[str]) -> Named | None:
    """The format of a LoRA file of another tool; None if the names are of no such file."""
    names = list(names)
    for form in FORMATS:
        found = {name: match for name in names if (match := form.factor.fullmatch(name))}
        if found:
            return _named(form, names, found)
    return None


def is_peft(names: Iterable[str]) -> bool:
    """Whether the names are those of an adapter that PEFT saved."""
    return any(_PEFT.fullmatch(name) for name in names)


def foreign_config(named: Named, metadata: Mapping[str, str], settings: Mapping[str, Any] | None) -> AdapterConfig:
    """The settings of an adapter in another tool's format.

    Args:
        named: see `recognise`.
        metadata: the free text in the file's header, where newer versions of diffusers put PEFT's config.
        settings: the adapter_config.json next to it, if any.
    """
    form = named.format
    common = AdapterConfig(
        r=0,
        alpha=0.0,
        format=form.name,
        mangled=form.mangled,
        flipped=form.flipped,
        alpha_names=named.alphas,
        components=named.components,
        problems=named.problems,
    )
    if form.name == "mlx-lm":
        return _mlx_config(common, settings or {})
    raw = metadata.get("lora_adapter_metadata")
    return _diffusers_config(common, raw) if raw and not form.mangled else common


def _named(form: AdapterFormat, names: Iterable[str], found: Mapping[str, re.Match[str]]) -> Named:
    paths: dict[str, str] = {}
    alphas: dict[str, str] = {}
    components: set[str] = set()
    stems: dict[str, str] = {}
    for name, match in found.items():
        component = match.groupdict().get("component") or ""
        path = f"{component}.{match['module']}" if component else match["module"]
        components |= {component} if component else set()
        stems[name[: match.end("module")]] = path
        paths[name] = f"{PEFT_PREFIX}{path}.lora_{_HALVES[match['half']]}.weight"
    rest = []
    for name in names:
        stem, _, last = name.rpartition(".")
        if name not in paths and last == "alpha" and stem in stems:
            alphas[stems[stem]] = name
        elif name not in paths:
            rest.append(name)
    other = next((what for key, what in _OTHERS.items() if any(key in name for name in rest)), None)
    problems = []
    if rest:
        what = f"uses {other}" if other else f"holds {len(rest)} tensors that are no LoRA factors, such as {rest[0]!r}"
        problems.append(
            f"is a {form.name} file and {what}, so its change is not B A alone. Merge it into its base with "
            f"{form.name} and pick the result."
        )
    return Named(form, paths, alphas, tuple(sorted(components)), tuple(problems))


def _mlx_config(common: AdapterConfig, settings: Mapping[str, Any]) -> AdapterConfig:
    """mlx-lm adds scale * (x A B), with A (in x rank) and B (rank x out)."""
    problems = list(common.problems)
    kind, values = settings.get("fine_tune_type", "lora"), settings.get("lora_parameters")
    scale = values.get("scale") if isinstance(values, Mapping) else None
    if kind != "lora":
        problems.append(f"was trained by mlx-lm with fine_tune_type {str(kind)[:40]!r}; only 'lora' is B A alone.")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) < 1e30:
        problems.append(
            "is an mlx-lm adapter whose adapter_config.json gives no `scale` in `lora_parameters`. Put the config "
            "that mlx-lm wrote next to the weights."
        )
        scale = 1.0
    return replace(common, scale=float(scale), problems=tuple(problems))


def _diffusers_config(common: AdapterConfig, raw: str) -> AdapterConfig:
    """PEFT's config of each component, which diffusers flattens to COMPONENT.SETTING."""
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        problem = "has the metadata `lora_adapter_metadata`, which is not a table. Save it again."
        return replace(common, problems=(*common.problems, problem))
    parts = {
        component: {
            key.removeprefix(f"{component}."): value for key, value in table.items() if key.startswith(f"{component}.")
        }
        for component in common.components
    }
    return replace(common, of_components={name: parse_adapter_config(part) for name, part in parts.items() if part})
