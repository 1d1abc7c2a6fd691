"""Names of a checkpoint's files. Needs no torch, since the process that talks to the hub imports it too."""

from __future__ import annotations

import re

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX_NAME = f"model{INDEX_SUFFIX}"
# How the weight files of a folder with config.json may be called: as transformers does, or as diffusers does.
STEMS = ("model", "diffusion_pytorch_model")
MODULES_NAME = "modules.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
# The report that every output of this app holds.
REPORT_NAME = "sftm_report.json"
MLX_WEIGHTS_NAME = "adapters.safetensors"
# A shard that an index may name: a plain name in its own folder.
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\.safetensors")
