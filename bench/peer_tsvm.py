"""FusionBench's TSV-M on folders of CLIP vision models: `python peer_tsvm.py OUTPUT BASE TASK...`.

bench.peers runs it with the peers' own Python. It uses the classes that the command `fusion_bench
method=task_singular_vector/... modelpool=CLIPVisionModelPool/...` creates, and saves as that command does.
"""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    output, base, *tasks = sys.argv[1:]
    algorithm = import_module("fusion_bench.method.task_singular_vector").TaskSingularVectorMerging(alpha=1.0)
    models = {"_pretrained_": base} | {f"task{index}": task for index, task in enumerate(tasks)}
    pool = import_module("fusion_bench.modelpool").CLIPVisionModelPool(models)
    pool.save_model(algorithm.run(pool), output)


if __name__ == "__main__":
    main()
