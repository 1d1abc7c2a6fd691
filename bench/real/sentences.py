"""How much of an embedding model a merge preserves: embeddings and similarities on two kinds of sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
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


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors without ties, -1..1."""
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])


class Agreement:
    """How similar the embeddings of a merge are to those of a task model.

    Args:
        base: the folder of the base, which gives the tokenizer and the architecture.
        task: the folder of the task model.
        texts: sentences by kind.
    """

    def __init__(self, base: Path, task: Path, texts: Mapping[str, list[str]]) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = AutoModel.from_pretrained(base).eval()
        self._texts = texts
        wanted = AutoModel.from_pretrained(task).eval()
        self._wanted = {kind: self._embed(wanted, lines) for kind, lines in texts.items()}

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, float]:
        """For each kind of sentence the mean cosine with the task model's embeddings, and the rank correlation of all
        pairwise similarities with the task model's.

        Args:
            tensors: of the merge, by the base's names.
        """
        self._model.load_state_dict(dict(tensors), strict=False)
        found = {}
        for kind, lines in self._texts.items():
            own, wanted = self._embed(self._model, lines), self._wanted[kind]
            upper = torch.triu_indices(len(lines), len(lines), 1)
            own_pairs, wanted_pairs = ((e @ e.T)[upper[0], upper[1]] for e in (own, wanted))
            found[f"{kind}: cosine"] = float((own * wanted).sum(1).mean())
            found[f"{kind}: rank correlation"] = rank_correlation(own_pairs, wanted_pairs)
        return found

    @torch.inference_mode()
    def _embed(self, model: nn.Module, lines: list[str]) -> Tensor:
        """Unit sentence embeddings, float32 (n, hidden): the mean over tokens, as both model cards say."""
        parts = []
        for start in range(0, len(lines), 64):
            encoded = self._tokenizer(
                lines[start : start + 64], padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            states = model(**encoded).last_hidden_state
            mask = encoded["attention_mask"].unsqueeze(-1).float()
            parts.append((states * mask).sum(1) / mask.sum(1))
        return functional.normalize(torch.cat(parts), dim=1)
