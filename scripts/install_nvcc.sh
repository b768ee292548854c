#!/bin/sh
# Install nvcc 13 and the CUDA runtime's headers and static library into a manylinux_2_28 container.
set -eu
dnf config-manager --add-repo https://developer.download.nvidia.com/compute/cuda/repos/rhel8/x86_64/cuda-rhel8.repo
dnf install -y --setopt=install_weak_deps=False cuda-nvcc-13-0 cuda-cudart-devel-13-0 cuda-cccl-13-0
"/usr/local/cuda/bin/nvcc" --version
