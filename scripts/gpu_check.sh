#!/usr/bin/env bash
# Check and measure the GPU kernels on a bare CUDA machine: torch, Triton and pytest are there, nothing is downloaded.
#
#   scripts/gpu_check.sh [FOLDER]      results go to FOLDER, ./gpu-results by default; PYTHON names the interpreter
#
# Ends within 8 minutes. FOLDER: summary.md, build.txt, tests.txt, and for each benchmark a table (.md), samples (.json),
# a plot (.png) and the profiler's numbers (.txt). The exit status is 0 when the tests passed and the
# benchmarks, which check every result first, ran through.
set -uo pipefail

cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${1:-gpu-results}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"

"$python" - <<'PYTHON' || exit 2
import sys
import torch
if not torch.cuda.is_available():
    sys.exit("gpu_check: torch sees no CUDA device")
import triton
print(f"torch {torch.__version__}, Triton {triton.__version__}, {torch.cuda.get_device_name()}")
PYTHON

step() {  # step NAME SECONDS COMMAND...: run it, keep what it prints in NAME.txt, note how it ended
    local name=$1 seconds=$2 start=$SECONDS status
    shift 2
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$out/$name.txt"
    status=${PIPESTATUS[0]}
    echo "- $name: exit status $status after $((SECONDS - start)) s" >>"$out/summary.md"
    return "$status"
}

{
    echo "# GPU check, $(date -u +%Y-%m-%dT%H:%MZ)"
    echo
    echo "- commit $(git describe --always --dirty 2>/dev/null || echo unknown)"
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv,noheader | sed 's/^/- /'
    "$python" -c 'import torch, triton; print(f"- torch {torch.__version__}, Triton {triton.__version__}")'
} >"$out/summary.md"

# The extension serves other backends; without it the Triton kernels are still checked.
step build 120 "$python" setup.py build_ext --inplace
# Only files with GPU tests: others may want packages that such a machine lacks.
mapfile -t files < <(grep -lr --include='test_*.py' 'mark.gpu' tests)
step tests 200 "$python" -m pytest -m gpu -p no:cacheprovider "${files[@]}"
tests=$?
step benchmarks 150 "$python" -m benchmarks --device cuda --budget 0.3 --out "$out"
benchmarks=$?
cat "$out/summary.md"
exit $((tests || benchmarks))
