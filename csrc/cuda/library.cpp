// `fastinpaint._C_cuda` holds the CUDA kernels of the operators that csrc/library.cpp declares.
#include "module.h"

FASTINPAINT_MODULE(_C_cuda)
