#!/usr/bin/env bash
# Makes an environment with OpenVINO GenAI and its converter, for comparison beside kvern. Nothing of it enters this tree.
#
#   benchmarks/peers/build_openvino.sh FOLDER [PYTHON]
#
# FOLDER/bin/python then runs benchmarks/peers/openvino_worker.py. About 2 GB, most of it the converter.
set -euo pipefail

folder=${1:?usage: build_openvino.sh FOLDER [PYTHON]}
python=${2:-python3}
"$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install torch==2.13.0  # the CPU build first
pip install openvino-genai==2026.4.1 optimum-intel==2.2.0 nncf gguf
echo "built: $folder/bin/python"
