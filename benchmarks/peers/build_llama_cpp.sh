#!/usr/bin/env bash
# Builds llama.cpp's own benchmarks, for comparison beside kvern on the same file. Nothing of it enters this tree.
#
#   benchmarks/peers/build_llama_cpp.sh FOLDER [PYTHON] [JOBS]
#
# FOLDER gets the source package of llama-cpp-python and bin/llama-bench, bin/llama-batched-bench and
# bin/llama-perplexity. PYTHON needs pip, cmake, ninja and scikit-build-core (pip asks the package's build back end
# for its metadata). The package comes from the index that pip is configured to use.
set -euo pipefail

version=0.3.36
folder=${1:?usage: build_llama_cpp.sh FOLDER [PYTHON] [JOBS]}
python=${2:-python3}
jobs=${3:-2}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
python=$(command -v "$python")
PATH="$(dirname "$python"):$PATH"

source="$folder/llama_cpp_python-$version/vendor/llama.cpp"
if [ ! -d "$source" ]; then
  "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-python \
    --dest "$folder" "llama-cpp-python==$version"
  tar -xzf "$folder/llama_cpp_python-$version.tar.gz" -C "$folder"
  # gcc 12's _tile_loadconfig declares only the first bytes of the configuration as read, so the stores of the rest may
  # be dropped, and the first AMX multiply then faults. One line of assembly keeps them.
  grep -rl '_tile_loadconfig(&' "$source/ggml/src/ggml-cpu" | while read -r file; do
    sed -i 's/_tile_loadconfig(&\([a-z_]*\));/asm volatile("" :: "r"(\&\1) : "memory"); &/' "$file"
  done
fi

cmake -S "$source" -B "$folder/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF \
  -DLLAMA_CURL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DBUILD_SHARED_LIBS=OFF >/dev/null
cmake --build "$folder/build" --parallel "$jobs" --target llama-bench llama-batched-bench llama-perplexity
mkdir -p "$folder/bin"
cp "$folder"/build/bin/llama-{bench,batched-bench,perplexity} "$folder/bin/"
echo "built: $folder/bin"
