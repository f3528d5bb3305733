"""OpenVINO GenAI's continuous batching on the workload; beside_peers.py runs it with build_openvino.sh's python.

    python openvino_worker.py FOLDER REPEATS SEED

FOLDER is what `optimum-cli export openvino --weight-format int8` wrote.
"""

from __future__ import annotations

import sys

import numpy as np
import openvino
import openvino_genai
from workload import Prompts, run


def main() -> None:
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 4
    scheduler.max_num_seqs = 64
    scheduler.max_num_batched_tokens = 2048
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_NUM_THREADS": 2, "PERFORMANCE_HINT": "LATENCY"}
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        sys.argv[1], scheduler_config=scheduler, device="CPU", properties=properties
    )

    def generate(prompts: Prompts, output: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output
        config.ignore_eos, config.do_sample = True, False
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        pipeline.generate(inputs, [config] * len(prompts))

    run(generate, int(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
