"""A full fine-tune becomes an adapter of a chosen rank or energy, and its cost is known before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from closeness import assert_close
from safetensors.torch import load_file
from tiny_adapters import build, load_adapter, logits, save_adapter

from sftm_app import cli
from sftm_app.api import extract, extraction_costs
from sftm_app.errors import InputError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama and a fine-tune of it whose changes of the linear layers have falling gains."""
    root = tmp_path_factory.mktemp("extract")
    model = build("llama")
    model.save_pretrained(root / "base")
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                m, n = parameter.shape
                gains = 0.5 ** torch.arange(min(m, n))
                parameter.add_((torch.randn(m, len(gains)) * gains) @ torch.randn(len(gains), n) * 0.1)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(root / "task")
    return root


def spectra(models: Path) -> dict[str, torch.Tensor]:
    base, task = (load_file(models / name / "model.safetensors") for name in ("base", "task"))
    return {name: torch.linalg.svdvals((task[name] - base[name]).double()).square() for name in base if "proj" in name}


def test_the_table_is_what_the_adapters_turn_out_to_be(models: Path, tmp_path: Path) -> None:
    costs = extraction_costs(models / "base", models / "task", "cpu")
    assert [cost.rank for cost in costs] == [1, 2, 4, 8, 16]
    assert [cost.energy for cost in costs] == sorted(cost.energy for cost in costs)
    assert costs[-1].energy == pytest.approx(1.0, abs=1e-12)
    squares = spectra(models)
    total = sum(float(each.sum()) for each in squares.values())
    for cost in costs:
        kept = sum(float(each[: cost.rank].sum()) for each in squares.values())
        assert cost.energy == pytest.approx(kept / total, abs=1e-6)
        shares = {name: float(each[: cost.rank].sum() / each.sum()) for name, each in squares.items()}
        assert cost.worst_energy == pytest.approx(min(shares.values()), abs=1e-6)
    report = extract(models / "base", models / "task", tmp_path / "four", rank=4, device="cpu")
    assert report.output_bytes == costs[2].n_bytes
    assert f"Rank 4 keeps {costs[2].energy:.1%} of the change" in report.warnings[-1]
    assert f"{costs[2].worst_layer}, keeps {costs[2].worst_energy:.1%}" in report.warnings[-1]


def test_energy_one_is_the_fine_tune_itself(models: Path, tmp_path: Path) -> None:
    report = extract(models / "base", models / "task", tmp_path / "all", energy=1.0, device="cpu")
    assert report.warnings == ()
    expected = logits(type(build("llama")).from_pretrained(models / "task"), "llama")
    assert_close(logits(load_adapter(tmp_path / "all", "llama"), "llama"), expected)


def test_more_rank_is_nearer_to_the_fine_tune(models: Path, tmp_path: Path) -> None:
    expected = logits(type(build("llama")).from_pretrained(models / "task"), "llama")
    distances = []
    for rank in (1, 4, 12):
        extract(models / "base", models / "task", tmp_path / str(rank), rank=rank, device="cpu")
        distances.append(float((logits(load_adapter(tmp_path / str(rank), "llama"), "llama") - expected).norm()))
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


def test_an_adapter_of_an_adapter_has_a_lower_rank(models: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "wide", "llama", 1, r=8)
    costs = extraction_costs(models / "base", tmp_path / "wide", "cpu")
    assert [cost.rank for cost in costs] == [1, 2, 4, 8]
    report = extract(models / "base", tmp_path / "wide", tmp_path / "narrow", rank=2, device="cpu")
    assert report.output_bytes == costs[1].n_bytes


def test_a_full_checkpoint_needs_a_rank_or_an_energy(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are full checkpoints"):
        extract(models / "base", models / "task", tmp_path / "out", device="cpu")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["extract", *map(str, arguments), "--device", "cpu", "--quiet"])
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def test_the_command_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--base", models / "base", "--task", models / "task")
    code, table, _ = run(capsys, *common)
    assert code == 0
    costs = extraction_costs(models / "base", models / "task", "cpu")
    rows = table.splitlines()
    assert [row.split()[0] for row in rows[1:-1]] == [str(cost.rank) for cost in costs]
    assert f"{costs[1].energy:.1%}" in rows[2]
    assert "100.0%" in rows[-1] or "%" in rows[-1]
    assert run(capsys, *common, "--rank", 4, "--table")[1] == table
    code, said, _ = run(capsys, *common, "--rank", 4, "--output", tmp_path / "out")
    assert code == 0
    assert "Rank 4 keeps" in said
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    for arguments, sentence in (
        (("--rank", 4), "Give --output FOLDER"),
        (("--rank", "many", "--output", tmp_path / "x"), "rank"),
        (("--energy", 2, "--output", tmp_path / "x"), "energy 2.0 is not a share"),
        (("--energy", 0.9, "--output", tmp_path / "out"), "exists already"),
    ):
        code, _, error = run(capsys, *common, *arguments)
        assert (code, "Traceback" in error) == (2, False)
        assert sentence in error
    assert not (tmp_path / "x").exists()
