#!/usr/bin/env bash
# Check and measure the GPU kernels on a CUDA machine: scripts/gpu_check.py says what and how.
#
#   scripts/gpu_check.sh [FOLDER] [--deadline SECONDS] [--steps a,b,c] [--list] [--dry-run]      PYTHON names the interpreter
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -u scripts/gpu_check.py "$@"
