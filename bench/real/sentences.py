"""How much of an embedding model a merge preserves: embeddings and similarities on two kinds of sentences."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from bench.real.classifiers import Task

N_GENERAL = 200


def corpus(sre_source: Path, tasks: list[Task]) -> dict[str, list[str]]:
    """Sentences from the domain of the third-party model, taken from its model card, and general ones.

    The card has few sentences, and its authors may have trained on them.
    """
    card = (sre_source / "README.md").read_text(encoding="utf-8")
    widgets = yaml.safe_load(card.split("---")[1])["widget"]
    trade = [text for widget in widgets for text in (widget["source_sentence"], *widget["sentences"])]
    trade += [text for text in re.findall(r"<code>([^<{]+)</code>", card) if not text[0].isdigit() and " " in text]
    general = [text for task in tasks for text in task.test.inputs[: N_GENERAL // len(tasks)]]
    return {"operations": sorted(set(trade)), "general": general}


@torch.no_grad()
def embed(folder: Path, texts: list[str]) -> Tensor:
    """Unit sentence embeddings, float32 (n, hidden): the mean over tokens, as both model cards say."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    parts = []
    for start in range(0, len(texts), 64):
        encoded = tokenizer(
            texts[start : start + 64], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        states = model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1).float()
        parts.append((states * mask).sum(1) / mask.sum(1))
    return functional.normalize(torch.cat(parts), dim=1)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors without ties, -1..1."""
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])


def agreement(folder: Path, task: Path, base: Path, texts: dict[str, list[str]]) -> dict[str, float]:
    """How similar the model in `folder` is to the task model, for each kind of sentence.

    Returns:
        The mean cosine of its embeddings with the task model's and with the base's, and the rank correlation of all
        pairwise similarities with the task model's.
    """
    found = {}
    for kind, lines in texts.items():
        own, wanted, before = (embed(path, lines) for path in (folder, task, base))
        upper = torch.triu_indices(len(lines), len(lines), 1)
        own_pairs, wanted_pairs = (e @ e.T for e in (own, wanted))
        found[f"{kind}: cosine with sre"] = float((own * wanted).sum(1).mean())
        found[f"{kind}: cosine with base"] = float((own * before).sum(1).mean())
        pairs = own_pairs[upper[0], upper[1]], wanted_pairs[upper[0], upper[1]]
        found[f"{kind}: rank correlation with sre"] = rank_correlation(*pairs)
    return found


def loads(folder: Path) -> str:
    """A sentence on whether sentence-transformers, if installed, loads `folder` and gives the same embeddings."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return "sentence-transformers is not installed, so loading was not tested."
    texts = ["bulkhead pattern", "a horse in the snow"]
    program = (
        "import json, sys; from sentence_transformers import SentenceTransformer; "
        "model = SentenceTransformer(sys.argv[1], device='cpu'); "
        "print(json.dumps(model.encode(sys.argv[2:], normalize_embeddings=True).tolist()))"
    )
    command = [sys.executable, "-c", program, str(folder), *texts]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    given = torch.tensor(yaml.safe_load(done.stdout.strip().splitlines()[-1]))
    difference = float((given - embed(folder, texts)).abs().max())
    return f"SentenceTransformer loads {folder.name}; its embeddings differ from ours by at most {difference:.1g}."
