#!/usr/bin/env bash
# Check and measure the GPU kernels on a CUDA machine; nothing is downloaded. It wants torch, Triton, and what the GPU
# tests and benchmarks import: pytest, pytest-benchmark, hypothesis, numpy, safetensors, tqdm. scikit-image, OpenCV,
# kornia and matplotlib are used where they are.
#
#   scripts/gpu_check.sh [FOLDER]      results go to FOLDER, ./gpu-results by default; PYTHON names the interpreter
#
# Ends within 8 minutes. FOLDER: summary.md, build.txt, tests.txt, what compute-sanitizer says of the CUDA Canny
# (memcheck.txt, racecheck.txt), and for each benchmark a table (.md), samples (.json), a plot (.png) and the profiler's
# numbers (.txt). The exit status is 0 when the tests passed and the
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

DEADLINE=470  # seconds from the start
step() {  # step NAME SECONDS COMMAND...: run it, keep what it prints in NAME.txt, note how it ended
    local name=$1 seconds=$2 start=$SECONDS status
    local left=$((DEADLINE - SECONDS > 1 ? DEADLINE - SECONDS : 1))
    seconds=$((seconds < left ? seconds : left))
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
step build 100 "$python" setup.py build_ext --inplace ||
    FASTINPAINT_CUDA=0 step build_without_cuda 60 "$python" setup.py build_ext --inplace
# Only files with GPU tests: others may want packages that such a machine lacks.
mapfile -t files < <(grep -lr --include='test_*.py' 'mark.gpu' tests)
step tests 180 "$python" -m pytest -m gpu -p no:cacheprovider "${files[@]}"
tests=$?
canny='
import torch, fastinpaint as fi
for shape, sigma in (((2, 1, 130, 200), 1.5), ((1, 3, 70, 100), 12.0)):
    image, mask = torch.rand(shape), torch.rand(shape[0], 1, *shape[2:]) > 0.02
    fi.canny(image.cuda(), sigma=sigma, mask=mask.cuda(), backend="native")
    fi.canny_pyramid(image.half().cuda(), sigma=sigma, backend="native")
torch.cuda.synchronize()
'
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
for tool in memcheck racecheck; do
    if [ -z "$sanitizer" ]; then
        echo "- $tool: not done, compute-sanitizer is missing" >>"$out/summary.md"
        continue
    fi
    # Without torch's cache every allocation stands by itself, so that a step over its end is seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        step "$tool" 30 "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" -c "$canny"
    [ $? -ne 9 ] || tests=9
done
benchmarks=0
for name in structure_loss pooled_attention patch_attention canny canny_pyramid generator; do
    step "bench_$name" 60 "$python" -m benchmarks "$name" --device cuda --budget 0.2 --out "$out" || benchmarks=1
done
cat "$out/summary.md"
exit $((tests || benchmarks))
