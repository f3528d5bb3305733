#!/bin/sh
# Builds the extension with address and undefined-behaviour checks and runs the native tests on it.
#
#   tools/sanitized_tests.sh PYTHON [pytest arguments]
#
# PYTHON has kvern's test extra. The checked build lies in build/sanitized, beside links to the sources; the
# package that PYTHON has installed is not used.
set -eu
cd "$(dirname "$0")/.."
python=${1:?usage: sanitized_tests.sh PYTHON [pytest arguments]}
shift
PATH="$(dirname "$python"):$PATH"
build=$PWD/build/sanitized
cmake -S . -B "$build" -G Ninja -DKVERN_SANITIZE=ON "-DKVERN_ISAS=portable;avx2" -DPython_EXECUTABLE="$(command -v "$python")" >/dev/null
cmake --build "$build"
mkdir -p "$build/path/kvern"
for entry in "$PWD"/src/kvern/*; do
  case $entry in *_native*.so) ;; *) ln -sfn "$entry" "$build/path/kvern/" ;; esac
done
cp "$build"/native/_native*.so "$build/path/kvern/"
# The interpreter itself is not built with the checks, so their library must be there first. Python and NumPy keep
# memory until the process ends: not a leak of ours.
libraries="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)"
exec env LD_PRELOAD="$libraries" ASAN_OPTIONS=detect_leaks=0,abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
  PYTHONPATH="$build/path" "$python" -m pytest tests/native -k "not emulated" "$@"
