"""Places on the map, measures and details against direct formulas, and the cache."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import change_weights

from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.checkpoints.roles import Part
from sftm_app.errors import CheckpointError, InputError, NumericalError
from sftm_app.inspection.factors import FactorCache, LayerFactors, factorise_layer
from sftm_app.inspection.layer import layer_detail, pair_detail
from sftm_app.inspection.layers import MapLayer, map_layers, place, short_columns, short_rows
from sftm_app.inspection.measures import MEASURES
from sftm_app.inspection.survey import find_layer, survey
from sftm_app.linalg.svd import Factors
from sftm_app.merging.plan import check_recipe
from sftm_app.merging.recipe import make_recipe

NAME = "encoder.layer.1.intermediate.dense.weight"
NAMES = ("a", "b", "c")


def preflight_of(models: Path) -> Preflight:
    return check_recipe(make_recipe(models / "base", [models / name for name in NAMES])).require()


def layer_of(found: Preflight, name: str = NAME) -> MapLayer:
    return find_layer(map_layers(found), name)


def direct(models: Path, name: str = NAME) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """The base's weight and each task's SVD, in float64, from the files."""
    base = load_file(models / "base" / "model.safetensors")[name].double().numpy()
    base = base.reshape(base.shape[0], -1)
    parts = []
    for task in NAMES:
        weight = load_file(models / task / "model.safetensors")[f"vit.{name}"].double().numpy()
        parts.append(np.linalg.svd(weight.reshape(base.shape) - base, full_matrices=False))
    return base, parts


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("encoder.layer.3.attention.output.dense.weight", "encoder.layer.3", "attention.output.dense"),
        ("encoder.layer.11.intermediate.dense.weight", "encoder.layer.11", "intermediate.dense"),
        ("h.0.attn.c_attn.weight", "h.0", "attn.c_attn"),
        ("vit.encoder.layer.0.output.dense.weight", "vit.encoder.layer.0", "output.dense"),
        ("embeddings.patch_embeddings.projection.weight", "outside", "embeddings.patch_embeddings.projection"),
        ("blocks.2.weight", "blocks.2", "blocks.2"),
        ("0.fc1.weight", "0", "fc1"),
        ("layer1.conv2.weight", "outside", "layer1.conv2"),
    ],
)
def test_places(name: str, row: str, column: str) -> None:
    assert place(name) == (row, column)


def test_the_map_of_a_vit(tiny_models: Path) -> None:
    layers = map_layers(preflight_of(tiny_models))
    columns = (
        "attention.attention.key", "attention.attention.query", "attention.attention.value",
        "attention.output.dense", "intermediate.dense", "output.dense",
    )  # fmt: skip
    assert [layer.row for layer in layers] == ["outside"] + ["encoder.layer.0"] * 6 + ["encoder.layer.1"] * 6
    assert {layer.column for layer in layers if layer.row == "encoder.layer.0"} == set(columns)
    assert layers[0].name == "embeddings.patch_embeddings.projection.weight"
    assert layers[0].shape == (16, 16)  # 16 channels out, 1 x 4 x 4 in
    by_name = {layer.name: layer for layer in layers}
    assert by_name[NAME].shape == (24, 16)
    assert all(layer.members == (0, 1, 2) and not layer.part.transposed for layer in layers)


def test_blocks_are_ordered_by_number(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    template = NAME.replace(".1.", ".{}.")
    names = [template.format(i) for i in (10, 9, 2, 0)]
    info = found.base.tensors[NAME]
    base = dataclasses.replace(found.base, tensors={name: info for name in names})
    match = dataclasses.replace(found.matches[0], names={name: name for name in names})
    owners = {name: found.architecture.owners[NAME] for name in names}
    architecture = dataclasses.replace(found.architecture, owners=owners)
    made = map_layers(dataclasses.replace(found, base=base, matches=(match,), architecture=architecture))
    assert [layer.name for layer in made] == [template.format(i) for i in (0, 2, 9, 10)]


def test_short_names() -> None:
    assert short_rows(["outside", "encoder.layer.0", "encoder.layer.10"]) == ["outside", "0", "10"]
    assert short_rows(["encoder.0", "decoder.0"]) == ["encoder.0", "decoder.0"]
    columns = ["attention.attention.key", "attention.output.dense", "intermediate.dense", "output.dense"]
    shown = short_columns(columns)
    assert shown == ["key", "attention.output.dense", "intermediate.dense", "output.dense"]
    assert len(set(shown)) == len(columns)


@pytest.mark.parametrize("name", ["embeddings.patch_embeddings.projection.weight", NAME])
def test_factors_are_those_of_the_task_matrices(tiny_models: Path, name: str) -> None:
    found = preflight_of(tiny_models)
    made = factorise_layer(found, layer_of(found, name))
    base, parts = direct(tiny_models, name)
    assert made.base_norm == pytest.approx(np.linalg.norm(base), rel=1e-6)
    for factors, (U, s, Vh) in zip(made.factors, parts, strict=True):
        np.testing.assert_allclose(factors.matrix().double().numpy(), (U * s) @ Vh, atol=1e-6)
    assert made.n_bytes == sum(4 * (f.U.numel() + f.S.numel() + f.Vh.numel()) for f in made.factors)


def test_measures_against_direct_formulas(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    made = factorise_layer(found, layer_of(found))
    base, parts = direct(tiny_models)
    values = {name: measure.compute(made) for name, measure in MEASURES.items()}
    change = np.mean([np.linalg.norm(s) / np.linalg.norm(base) for _, s, _ in parts])
    assert values["change"] == pytest.approx(change, rel=1e-5)
    ranks = []
    for _, s, _ in parts:
        p = s / s.sum()
        ranks.append(math.exp(-(p * np.log(p)).sum()) / 16)
    assert values["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-4)
    reads, writes = [], []
    for i in range(3):
        for j in range(i):
            (U, s, Vh), (P, t, Qh) = parts[i], parts[j]
            p, q = s**2, t**2
            scale = np.linalg.norm(p) * np.linalg.norm(q)
            reads.append(p @ (Vh @ Qh.T) ** 2 @ q / scale)
            writes.append(p @ (U.T @ P) ** 2 @ q / scale)
    assert values["read_overlap"] == pytest.approx(np.mean(reads), rel=1e-4)
    assert values["write_overlap"] == pytest.approx(np.mean(writes), rel=1e-4)
    detail = layer_detail(made, NAMES)
    for kind in ("read", "write"):
        pairs = getattr(detail, kind)[~torch.eye(3, dtype=torch.bool)]
        assert values[f"{kind}_overlap"] == pytest.approx(float(pairs.mean()), rel=1e-5), "one definition on one tab"


def made_of(*matrices: torch.Tensor, base_norm: float = 1.0) -> LayerFactors:
    from sftm_app.linalg.svd import factorise

    m, n = matrices[0].shape
    layer = MapLayer("x.weight", "outside", "x", (m, n), "x.weight", Part(), tuple(range(len(matrices))))
    return LayerFactors(layer, base_norm, tuple(factorise(matrix) for matrix in matrices))


def test_measures_at_their_ends() -> None:
    one = torch.zeros(4, 3)
    one[0, 0] = 2.0
    other = torch.zeros(4, 3)
    other[1, 1] = 5.0
    values = {name: MEASURES[name].compute for name in MEASURES}
    same, apart, zero = made_of(one, one), made_of(one, other), made_of(torch.zeros(4, 3), torch.zeros(4, 3))
    assert values["read_overlap"](same) == pytest.approx(1) and values["write_overlap"](same) == pytest.approx(1)
    assert values["read_overlap"](apart) == 0 and values["write_overlap"](apart) == 0
    assert values["change"](apart) == pytest.approx(3.5)
    assert values["effective_rank"](same) == pytest.approx(1 / 3)
    assert [compute(zero) for compute in values.values()] == [0.0, 0.0, 0.0, 0.0]
    assert values["read_overlap"](made_of(one)) == 0.0
    assert values["change"](made_of(one, base_norm=0.0)) == math.inf
    for measure in MEASURES.values():
        assert measure.title and measure.help.endswith(".")


def test_layer_detail_against_direct_svd(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    detail = layer_detail(factorise_layer(found, layer_of(found)), NAMES)
    base, parts = direct(tiny_models)
    assert (detail.name, detail.shape) == (NAME, (24, 16))
    projectors = {"read": [], "write": []}
    for spectrum, task, (U, s, Vh) in zip(detail.spectra, NAMES, parts, strict=True):
        assert spectrum.task == task
        np.testing.assert_allclose(spectrum.gains, s, rtol=1e-4)
        assert spectrum.relative_change == pytest.approx(np.linalg.norm(s) / np.linalg.norm(base), rel=1e-5)
        assert spectrum.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-4)
        energy = np.cumsum(s**2) / (s**2).sum()
        assert spectrum.ranks_for_energy == {e: int((energy < e).sum()) + 1 for e in (0.90, 0.95, 0.99)}
        D = (U * s) @ Vh
        projectors["read"].append(D.T @ D)
        projectors["write"].append(D @ D.T)
    for kind in ("read", "write"):
        found_overlap = getattr(detail, kind).numpy()
        wanted = [
            [(p * q).sum() / (np.linalg.norm(p) * np.linalg.norm(q)) for q in projectors[kind]]
            for p in projectors[kind]
        ]
        np.testing.assert_allclose(found_overlap, wanted, atol=1e-5)
        assert np.allclose(np.diag(found_overlap), 1)


def test_pair_detail_against_direct_svd(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    pair = pair_detail(factorise_layer(found, layer_of(found)), NAMES, 0, 2)
    _, parts = direct(tiny_models)
    (U, _, Vh), (P, _, Qh) = parts[0], parts[2]
    assert (pair.first, pair.second) == ("a", "c")
    np.testing.assert_allclose(pair.read.numpy(), np.abs(Vh @ Qh.T), atol=2e-3)
    np.testing.assert_allclose(pair.write.numpy(), np.abs(U.T @ P), atol=2e-3)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20000, 16))
    cosines = np.abs((x * y).sum(1)) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert pair.random_read == pytest.approx(cosines.mean(), rel=0.03)
    assert pair.random_write < pair.random_read


def test_names_follow_the_members_of_the_layer() -> None:
    made = made_of(torch.eye(3), torch.eye(3))
    made = dataclasses.replace(made, layer=dataclasses.replace(made.layer, members=(0, 2)))
    assert [spectrum.task for spectrum in layer_detail(made, NAMES).spectra] == ["a", "c"]
    assert (pair_detail(made, NAMES, 0, 1).first, pair_detail(made, NAMES, 0, 1).second) == ("a", "c")


def test_a_task_without_a_change_has_no_features() -> None:
    detail = layer_detail(made_of(torch.zeros(3, 2), torch.eye(3)[:, :2]), NAMES)
    assert detail.spectra[0].gains == ()
    assert detail.spectra[0].ranks_for_energy == {0.90: 0, 0.95: 0, 0.99: 0}
    assert detail.read[0].tolist() == [0.0, 0.0]


def test_transposed_weights_are_turned(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=6)
    for seed, name in enumerate(("base", "t")):
        torch.manual_seed(seed)
        GPT2Model(config).save_pretrained(tmp_path / name)
    found = check_recipe(make_recipe(tmp_path / "base", [tmp_path / "t"])).require()
    layer = find_layer(map_layers(found), "h.0.attn.c_attn")
    assert (layer.shape, layer.part.transposed) == ((24, 8), True)
    base, task = (load_file(tmp_path / name / "model.safetensors")[layer.name] for name in ("base", "t"))
    torch.testing.assert_close(factorise_layer(found, layer).factors[0].matrix(), (task - base).T)


def test_the_cache_gives_the_same_object_and_keeps_its_limit(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    layers = map_layers(found)[1:5]
    size = factorise_layer(found, layers[0]).n_bytes
    cache = FactorCache(limit_bytes=2 * size + 1)
    first = cache.get(found, layers[0])
    assert cache.get(found, layers[0]) is first
    second = cache.get(found, layers[1])
    assert cache.get(found, layers[0]) is first  # looked at last, so it stays
    cache.get(found, layers[2])
    assert cache.get(found, layers[0]) is first
    assert cache.get(found, layers[1]) is not second
    tiny = FactorCache(limit_bytes=1)
    assert tiny.get(found, layers[0]).layer is layers[0]  # too large to be kept, handed back all the same


def test_a_changed_file_is_computed_again(models: Path) -> None:
    cache, found = FactorCache(), preflight_of(models)
    before = cache.get(found, layer_of(found))
    change_weights(models / "b" / "model.safetensors", lambda tensors: tensors[f"vit.{NAME}"].mul_(2))
    again = preflight_of(models)
    after = cache.get(again, layer_of(again))
    assert after is not before
    assert not torch.equal(after.factors[1].S, before.factors[1].S)
    torch.testing.assert_close(after.factors[0].S, before.factors[0].S)
    with pytest.raises(CheckpointError, match="was changed while in use"):
        FactorCache().get(found, layer_of(found))


def test_the_cache_stands_many_threads(tiny_models: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    found = preflight_of(tiny_models)
    layers = map_layers(found)
    cache = FactorCache(limit_bytes=20_000)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: cache.get(found, layers[i % len(layers)]), range(60)))
    assert all(one.layer is layers[i % len(layers)] for i, one in enumerate(made))


def test_nan_is_refused_by_name(models: Path) -> None:
    change_weights(models / "b" / "model.safetensors", lambda tensors: tensors[f"vit.{NAME}"].fill_(math.nan))
    found = preflight_of(models)
    with pytest.raises(NumericalError, match=f"b/model.safetensors: tensor 'vit.{NAME}' holds 384".replace(".", r"\.")):
        factorise_layer(found, layer_of(found))


def test_survey(tiny_models: Path) -> None:
    found = preflight_of(tiny_models)
    whole, one = survey(found), survey(found, NAME.removesuffix(".weight"))
    assert [layer for layer, _, _ in whole.layers] == list(map_layers(found))
    assert [layer.name for layer, _, _ in one.layers] == [NAME]
    content: Any = json.loads(one.to_json())
    assert content["tasks"] == list(NAMES)
    (entry,) = content["layers"]
    assert set(entry["measures"]) == set(MEASURES)
    assert [spectrum["task"] for spectrum in entry["spectra"]] == list(NAMES)
    assert len(entry["spectra"][0]["gains"]) == 16
    assert np.shape(entry["read_overlap"]) == (3, 3)
    with pytest.raises(InputError, match=r"no layer 'nonsense'\. Layers are named like 'embeddings"):
        survey(found, "nonsense")


def test_json_is_json_even_for_a_base_of_zeros(models: Path) -> None:
    change_weights(models / "base" / "model.safetensors", lambda tensors: tensors[NAME].zero_())

    def no_constants(name: str) -> None:
        raise AssertionError(name)

    content = json.loads(survey(preflight_of(models), NAME).to_json(), parse_constant=no_constants)
    assert content["layers"][0]["measures"]["change"] is None


def test_factors_are_not_compared_by_value() -> None:
    """Dataclasses of tensors compare by identity; comparing tensors would raise."""
    factors = Factors(torch.eye(2), torch.ones(2), torch.eye(2), "")
    assert factors == factors
    assert made_of(torch.eye(2)) != made_of(torch.eye(2))
