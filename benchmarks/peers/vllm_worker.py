"""vLLM's CPU build on the workload; run by beside_peers.py with the interpreter that build_vllm.sh made.

python vllm_worker.py FOLDER REPEATS SEED
"""

from __future__ import annotations

import os
import sys

from workload import Prompts, run


def main() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=sys.argv[1], dtype="bfloat16", max_model_len=4096, max_num_seqs=64, disable_log_stats=True,
        skip_tokenizer_init=True,
    )  # fmt: skip

    def generate(prompts: Prompts, output: int) -> None:
        sampling = SamplingParams(
            temperature=0, max_tokens=output, min_tokens=output, ignore_eos=True, detokenize=False
        )
        llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False)

    run(generate, int(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":  # vLLM starts processes that import this file again
    main()
