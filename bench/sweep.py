"""Merges a tiny model of every type that transformers knows, and compares every tensor with a direct computation.

    python -m bench.sweep [--share 0.33] [--seed 0] [--only TYPE ...] [--json FILE]

For each type: a base with random weights, two fine-tunes in which every weight is changed, and two LoRA adapters on
some of its linear layers. Which module owns a tensor of the files is found by its content: a parameter in memory that
holds the same bytes, or a stack of which one entry does. So nothing here relies on the app's knowledge of names. Linear
layers and convolutions are superposed in float64 (readouts at full rank); tables, norms and biases are averaged. What a
composite module holds itself may be either, since no module of torch says which.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

from sftm_app.api import merge
from sftm_app.errors import SFTMError

Array = np.ndarray
MAX_PARAMETERS = 4_000_000
MAX_SIDE = 400
LIMIT_S = 90
TOLERANCE = 2e-3
N_LORA = 6
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "width", "d_embed"), 16),
    **dict.fromkeys(("intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 24),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "hidden_dim", "feed_forward_size"), 24
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "depth", "num_mtp_layers", "num_hidden_groups"), 1),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("decoder_attention_heads", "num_key_value_heads", "n_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "d_head", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("v_head_dim", "kv_lora_rank", "q_lora_rank", "projection_dim", "rotary_dim"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_or_config_json_file"), 40),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"), 64),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "n_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("image_size",), 32),
}


LISTS = ("conv_dim", "hidden_sizes", "embed_dims", "tdnn_dim", "dims", "encoder_hidden_sizes", "neck_hidden_sizes")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def superposed(changes: list[Array]) -> Array:
    """Readouts at full rank, in float64: (U^T U o V^T V) a = s."""
    parts = [np.linalg.svd(change.astype(np.float64), full_matrices=False) for change in changes]
    kept = [(u[:, s > 1e-6 * s[0]], s[s > 1e-6 * s[0]], v[s > 1e-6 * s[0]]) for u, s, v in parts if s[0] > 0]
    if not kept:
        return np.zeros_like(changes[0], dtype=np.float64)
    U, s = np.concatenate([u for u, _, _ in kept], 1), np.concatenate([s for _, s, _ in kept])
    V = np.concatenate([v for _, _, v in kept], 0)
    a = np.linalg.lstsq((U.T @ U) * (V @ V.T), s, rcond=1e-9)[0]
    return (U * a) @ V


def shrink(config: Any, keys: Mapping[str, int]) -> Any:
    """A config with small sizes, its parts too."""
    values = {}
    for key, value in config.to_dict().items():
        inner = getattr(config, key, None)
        if isinstance(inner, hf.PreTrainedConfig):
            values[key] = shrink(inner, keys).to_dict()
        elif key in keys and isinstance(value, int) and not isinstance(value, bool) and value > keys[key]:
            values[key] = keys[key]
        elif key in LISTS and "lists" in keys and isinstance(value, list | tuple) and all(map(_is_int, value)):
            values[key] = [min(size, 16) for size in value]
        elif key == "layer_types" and isinstance(value, list):
            values[key] = value[:2]
        elif key.endswith("token_id") and isinstance(value, int) and value >= 40:
            values[key] = 1
    return type(config)(**values)


def build(kind: str) -> Any:
    """A tiny model of a type: sizes as small as its class allows.

    Raises:
        ValueError: none of the attempts is small enough.
    """
    default, said = hf.CONFIG_MAPPING[kind](), "too large"
    layers = {key: value for key, value in SMALL.items() if "layer" in key or "vocab" in key or "position" in key}
    for keys in (SMALL, SMALL | {"lists": 1}, {k: v for k, v in SMALL.items() if "head" not in k}, layers):
        try:
            config = shrink(default, keys)
            with torch.device("meta"):
                model = class_of(config)._from_config(config)
            if sum(p.numel() for p in model.parameters()) > MAX_PARAMETERS:
                said = "too large"
                continue
            return class_of(config)._from_config(config)
        except Exception as error:  # each class has its own demands
            said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:100]
    raise ValueError(said)


def has_class(kind: str) -> bool:
    """Whether a type has a model class of its own, and is no part of another."""
    try:
        class_of(hf.CONFIG_MAPPING[kind]())
    except Exception:  # what a default config needs may be missing
        return False
    return True


def class_of(config: Any) -> Any:
    for table in (hf.MODEL_MAPPING, hf.MODEL_FOR_CAUSAL_LM_MAPPING, hf.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING):
        if type(config) in table:
            found = table[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError("no model class of its own")


def shaken(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Every floating-point tensor moved a little."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else None
        moved[name] = tensor if noise is None else tensor + (0.05 * noise).to(tensor.dtype)
    return moved


Digest = tuple[tuple[int, ...], bytes]


def digest(tensor: torch.Tensor) -> Digest:
    return tuple(tensor.shape), tensor.detach().contiguous().numpy().tobytes()


def owners_of(model: Any) -> dict[Digest, str]:
    """What holds each tensor, by its content: "matrix", "mean", or "either"."""
    modules = dict(model.named_modules())
    found: dict[Digest, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        path, _, last = name.rpartition(".")
        kind = kind_of(modules[path], last, parameter)
        views = [parameter, parameter.T] if parameter.ndim == 2 else [parameter]
        if parameter.ndim == 3:
            entries = [entry for expert in parameter for entry in (expert, *expert.chunk(2, 0), *expert.chunk(2, 1))]
            views += [view for entry in entries for view in (entry, entry.T)] + [parameter.transpose(1, 2)]
        views += list(parameter.chunk(3, 0)) + list(parameter.chunk(2, 0)) if parameter.ndim else []
        for view in views:
            found.setdefault(digest(view), kind if view is parameter or kind != "either" else "either")
    return found


def kind_of(module: nn.Module, name: str, parameter: torch.Tensor) -> str:
    holder = type(module).__name__
    if parameter.ndim < 2 or name.endswith("bias"):
        return "mean"
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or holder == "Conv1D":
        return "matrix"
    if isinstance(module, nn.Embedding) or "Norm" in holder:
        return "mean"
    return "either"


def expected(name: str, base: Array, tasks: list[Array], kind: str, flip: bool) -> Iterator[Array]:
    """The merged tensor, or the possible ones."""
    changes = [task - base for task in tasks]
    if kind in ("mean", "either") or base.ndim < 2:
        yield base + np.mean(changes, axis=0)
    if kind in ("matrix", "either") and base.ndim >= 2 and 0 not in base.shape:
        axes = (1, 0, *range(2, base.ndim)) if flip else tuple(range(base.ndim))
        maps = [change.transpose(axes).reshape(base.shape[axes[0]], -1) for change in changes]
        if min(maps[0].shape) <= MAX_SIDE:
            moved = superposed(maps).reshape([base.shape[axis] for axis in axes])
            yield base + moved.transpose(np.argsort(axes))
        if base.ndim == 3 and kind == "either" and len(base) <= 256:
            yield base + np.stack([superposed([change[i] for change in changes]) for i in range(len(base))])


def off(found: Array, want: Array, base: Array) -> float:
    moved = float(np.linalg.norm(want - base))
    return float(np.linalg.norm(found - want)) / (moved or 1.0)


def compare(kind: str, root: Path, model: Any) -> list[str]:
    """Names of tensors of the merge that are wrong."""
    base, out = numpy_of(root / "base"), numpy_of(root / "out")
    tasks = [numpy_of(root / name) for name in "ab"]
    owners = owners_of(model)
    stored = load_all(root / "base")
    flips = {digest(m.weight): True for m in model.modules() if isinstance(m, nn.modules.conv._ConvTransposeNd)}
    wrong = []
    for name, ours in base.items():
        if not np.issubdtype(ours.dtype, np.floating):
            continue
        theirs, what = [task[name] for task in tasks], owners.get(digest(stored[name]), "either")
        if 0 in ours.shape:
            continue
        flip = digest(stored[name]) in flips
        best = min((off(out[name], want, ours) for want in expected(name, ours, theirs, what, flip)), default=0.0)
        unchanged = np.array_equal(out[name], ours) and what == "either"  # a buffer that the model computes
        if best > TOLERANCE and not unchanged:
            wrong.append(f"{name} ({what}, off by {best:.2g})")
    return wrong


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def numpy_of(folder: Path) -> dict[str, Array]:
    return {
        name: tensor.double().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in load_all(folder).items()
    }


def save_adapters(root: Path, model: Any) -> dict[str, list[Array]]:
    """Two adapters on some linear layers. Returns each layer's changes by its path."""
    linear = [
        (path, module)
        for path, module in model.named_modules()
        if type(module) is nn.Linear and min(module.weight.shape) > 3 and path
    ]
    chosen = random.Random(0).sample(linear, min(N_LORA, len(linear)))
    changes: dict[str, list[Array]] = {path: [] for path, _ in chosen}
    for seed, name in enumerate(("lora_a", "lora_b"), 1):
        generator = torch.Generator().manual_seed(seed)
        factors: dict[str, torch.Tensor] = {}
        for path, module in chosen:
            m, n = module.weight.shape
            A, B = torch.randn(2, n, generator=generator), 0.1 * torch.randn(m, 2, generator=generator)
            factors |= {f"base_model.model.{path}.lora_A.weight": A, f"base_model.model.{path}.lora_B.weight": B}
            changes[path].append((2.0 * B.double() @ A.double()).numpy())
        if factors:
            (root / name).mkdir()
            save_file(factors, root / name / "adapter_model.safetensors")
            config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": sorted(changes)}
            (root / name / "adapter_config.json").write_text(json.dumps(config))
    return changes


def compare_adapters(root: Path, model: Any, changes: Mapping[str, list[Array]]) -> list[str]:
    """Names of layers of the merge of both adapters that are wrong, and of tensors that should not have changed."""
    base, out, stored = numpy_of(root / "base"), numpy_of(root / "out_lora"), load_all(root / "base")
    weights = {path: module.weight.detach() for path, module in model.named_modules() if path in changes}
    wrong = []
    for name, ours in base.items():
        if not np.issubdtype(ours.dtype, np.floating):
            continue
        placed = [(path, *place) for path, weight in weights.items() for place in places(stored[name], weight)]
        if placed:
            moved = [np.zeros_like(ours), np.zeros_like(ours)]
            for path, start, flip in placed:
                for whole, change in zip(moved, changes[path], strict=True):
                    part = change.T if flip else change
                    whole[start : start + len(part)] = part
            if off(out[name], ours + superposed(moved), ours) > TOLERANCE:
                wrong.append(name)
        elif not np.array_equal(out[name], ours):
            wrong.append(f"{name} changed")
    return wrong


def places(stored: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[int, bool]]:
    """Where a tensor of the files holds a weight: its first row, and whether it is transposed."""
    for flip, part in ((False, weight), (True, weight.T)):
        m, n = part.shape
        if stored.ndim == 2 and stored.shape[1] == n:
            starts = (
                start for start in range(0, len(stored) - m + 1, m) if torch.equal(stored[start : start + m], part)
            )
            first = next(starts, None)
            if first is not None:
                yield first, flip
                return


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome(work: Callable[[], list[str]]) -> tuple[str, str]:
    """("right" | "wrong" | "refused" | "failed", detail)."""
    try:
        with limited(LIMIT_S):
            wrong = work()
    except SFTMError as error:
        return "refused", str(error)[:300]
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:300]
    return ("wrong", "; ".join(wrong[:4])) if wrong else ("right", "")


def sweep_type(kind: str, root: Path) -> dict[str, tuple[str, str]]:
    """What became of one type: {"base": outcome, "lora": outcome}, or {"built": why not}."""
    torch.manual_seed(0)
    try:
        with limited(LIMIT_S):
            model = build(kind)
            model.save_pretrained(root / "base", max_shard_size="1GB")
            model = type(model).from_pretrained(root / "base")
            tensors = load_all(root / "base")
    except Exception as error:
        return {"built": ("no", f"{type(error).__name__}: {error}"[:200])}
    tensors = shaken(tensors, 9)  # no weight stays at an initial zero or one
    save_file(tensors, root / "base" / "model.safetensors", {"format": "pt"})
    model = type(model).from_pretrained(root / "base").float()
    for seed, name in enumerate("ab", 1):
        (root / name).mkdir()
        (root / name / "config.json").write_text((root / "base" / "config.json").read_text())
        save_file(shaken(tensors, seed), root / name / "model.safetensors", {"format": "pt"})
    settings: dict[str, Any] = {"method": "sftm", "variant": "readout", "rank": None, "calibration": 0.0}

    def full() -> list[str]:
        merge(root / "base", [root / "a", root / "b"], root / "out", device="cpu", **settings)
        return compare(kind, root, model)

    def lora() -> list[str]:
        changes = save_adapters(root, model)
        if not changes:
            return []
        merge(root / "base", [root / "lora_a", root / "lora_b"], root / "out_lora", device="cpu", **settings)
        return compare_adapters(root, model, changes)

    return {"base": outcome(full), "lora": outcome(lora)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="a random share of the types")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="these types")
    parser.add_argument("--json", type=Path, help="where to write the outcomes; those in it are kept")
    parser.add_argument("--seconds", type=float, default=3000.0, help="stop after this time")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    kinds = sorted(hf.CONFIG_MAPPING)
    random.Random(options.seed).shuffle(kinds)
    kinds = options.only or kinds[: round(options.share * len(kinds))]
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    found: dict[str, dict[str, tuple[str, str]]] = {k: v for k, v in kept.items() if k in kinds}
    started = time.monotonic()
    for kind in kinds:
        if kind in kept or not has_class(kind):
            continue
        if time.monotonic() - started > options.seconds:
            print(f"stopped after {options.seconds:.0f} s", file=sys.stderr)
            break
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = sweep_type(kind, Path(folder))
        for what, (how, detail) in found[kind].items():
            if how not in ("right",):
                print(f"{kind} {what}: {how}: {detail}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    print_table(found)


def print_table(found: Mapping[str, Mapping[str, tuple[str, str]]]) -> None:
    built = {kind: result for kind, result in found.items() if "built" not in result}
    print(f"\n{len(found)} types tried, {len(built)} build tiny\n")
    print("| merge | right | refused with a sentence | wrong | failed |\n|---|---|---|---|---|")
    for what, title in (("base", "two fine-tunes"), ("lora", "two LoRA adapters")):
        counts = Counter(result[what][0] for result in built.values())
        cells = " | ".join(str(counts[how]) for how in ("right", "refused", "wrong", "failed"))
        print(f"| {title} | {cells} |")


if __name__ == "__main__":
    main()
