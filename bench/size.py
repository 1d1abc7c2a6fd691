"""Memory and time of merging models of different sizes: `python -m bench.size [--sizes 1,4,10] [--folder SCRATCH]`.

For each size in GB, makes a Llama (float32) and two fine-tunes of it, merges them in a separate process, samples that
process's memory from outside, and prints a Markdown table. SCRATCH needs four times the largest size; each set of
models is removed after use.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from bench.machine import machine_line
from sftm_app.output.report import load_report
from sftm_app.planning.recipe import make_recipe, recipe_to_yaml
from sftm_app.weights.file_names import REPORT_NAME
from sftm_app.weights.writer import OutputTensor, weights_writer

# Very long matrices: many bytes for little arithmetic, so that factorising 10 GB takes minutes.
HIDDEN, INTERMEDIATE = 16, 262144
N_TASKS = 2


@dataclass(frozen=True)
class Measured:
    """One merge.

    Attributes:
        layers: of the model.
        model_bytes: size of the model.
        seconds: of the whole process.
        predicted_bytes: the memory that the plan predicted.
        peak_bytes: the memory that the merge took, by its report.
        resident_bytes: of the whole process, seen from outside.
    """

    layers: int
    model_bytes: int
    seconds: float
    predicted_bytes: int
    peak_bytes: int
    resident_bytes: int


def config(n_layers: int) -> dict[str, object]:
    """config.json of a Llama that has nearly all of its weights in three matrices per feed-forward layer."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaModel"],
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HIDDEN,
        "vocab_size": 64,
    }


def tensors(n_layers: int) -> list[OutputTensor]:
    """The tensors of this Llama, by their names in transformers."""
    wide, square = (INTERMEDIATE, HIDDEN), (HIDDEN, HIDDEN)
    shapes = {f"self_attn.{name}_proj.weight": square for name in "qkvo"}
    shapes |= {"mlp.gate_proj.weight": wide, "mlp.up_proj.weight": wide, "mlp.down_proj.weight": wide[::-1]}
    layers: dict[str, tuple[int, ...]] = {
        f"layers.{index}.{name}": shape for index in range(n_layers) for name, shape in shapes.items()
    }
    norms = ["input_layernorm", "post_attention_layernorm"]
    layers |= {f"layers.{index}.{name}.weight": (HIDDEN,) for index in range(n_layers) for name in norms}
    layers |= {"embed_tokens.weight": (64, HIDDEN), "norm.weight": (HIDDEN,)}
    return [OutputTensor(name, torch.float32, shape) for name, shape in layers.items()]


def write_model(folder: Path, n_layers: int, seed: int) -> None:
    """Write the base (seed 0), or a fine-tune: the base with a random change in every tensor."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(n_layers)))
    # Every tensor is a window of one random stream: drawing new numbers for each would take longer than the merge.
    base = 0.05 * torch.randn(2 * HIDDEN * INTERMEDIATE, generator=torch.Generator().manual_seed(0))
    change = 0.01 * torch.randn(len(base), generator=torch.Generator().manual_seed(seed))
    with weights_writer(folder, tensors(n_layers), 5_000_000_000) as writer:
        for index, tensor in enumerate(tensors(n_layers)):
            cut = slice(start := 4099 * index % (HIDDEN * INTERMEDIATE), start + tensor.n_elements)
            values = base[cut] + change[cut] if seed else base[cut]
            writer.write(tensor.name, values.reshape(tensor.shape))


def measure(folder: Path, gigabytes: float) -> Measured:
    """Make a set of models in `folder`, merge it and remove it."""
    per_layer = sum(tensor.n_bytes for tensor in tensors(2)) - sum(tensor.n_bytes for tensor in tensors(1))
    n_layers = max(1, round(gigabytes * 1e9 / per_layer))
    models = [folder / name for name in ("base", *(f"task{index}" for index in range(1, N_TASKS + 1)))]
    try:
        for seed, model in enumerate(models):
            write_model(model, n_layers, seed)
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe_to_yaml(make_recipe(models[0], models[1:], device="cpu")), encoding="utf-8")
        command = [sys.executable, "-m", "sftm_app", "merge", str(recipe), "--output", str(folder / "out"), "--quiet"]
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        resident = 0
        while child.poll() is None:
            try:
                resident = max(resident, psutil.Process(child.pid).memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.01)
        if child.wait():
            raise SystemExit(f"The merge of {gigabytes:g} GB failed with exit code {child.returncode}.")
        seconds = time.perf_counter() - started
        report = load_report(folder / "out" / REPORT_NAME)
        predicted, peak = report.machine.memory_predicted_bytes, report.machine.memory_peak_bytes
        return Measured(n_layers, report.output_bytes, seconds, predicted, peak, resident)
    finally:
        for made in (*models, folder / "out"):
            shutil.rmtree(made, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1,4,10", help="sizes of the model in GB, smallest first")
    parser.add_argument("--folder", type=Path, help="where to make the models (default: the system's temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | layers | time | predicted | took | predicted / took | whole process |")
    print("|---|---|---|---|---|---|---|")
    for size in options.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = measure(Path(folder), float(size))
        print(
            f"| {found.model_bytes / 1e9:.1f} GB | {found.layers} | {found.seconds:.0f} s "
            f"| {found.predicted_bytes / 1e6:.0f} MB | {found.peak_bytes / 1e6:.0f} MB "
            f"| {found.predicted_bytes / found.peak_bytes:.2f} | {found.resident_bytes / 1e6:.0f} MB |",
            flush=True,
        )
    print(f"\n{N_TASKS} tasks, float32, largest layer {4 * HIDDEN * INTERMEDIATE / 1e6:.1f} MB. {machine_line()}")


if __name__ == "__main__":
    main()
