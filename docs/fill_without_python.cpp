// Fill pictures without Python: fill_without_python picture.aoti.pt2 _C.abi3.so BATCH HEIGHT WIDTH <in >out
//
// in:  images (B, 3, H, W) in [0, 1], then masks (B, 1, H, W), above 0.5 in the hole, as raw float32 numbers
// out: filled images (B, 3, H, W); H and W divisible by 16
//
// g++ -std=c++20 -I$T/include -I$T/include/torch/csrc/api/include fill_without_python.cpp -o fill_without_python
//     -L$T/lib -Wl,-rpath,$T/lib -Wl,--no-as-needed -ltorch_cpu -lc10 -ldl     where T is the folder of the package torch
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <iostream>

static at::Tensor read(at::IntArrayRef shape) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  std::cin.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  TORCH_CHECK(std::cin, "too few numbers: wanted ", shape);
  return tensor;
}

int main(int count, char** arguments) {
  TORCH_CHECK(count == 6, "wanted PACKAGE LIBRARY BATCH HEIGHT WIDTH, got ", count - 1, " arguments");
  // Registers the operators; its one symbol of Python's, for `import`, is never called.
  TORCH_CHECK(dlopen(arguments[2], RTLD_LAZY | RTLD_GLOBAL) != nullptr, dlerror());
  torch::inductor::AOTIModelPackageLoader fill(arguments[1]);
  const int64_t batch = std::stoll(arguments[3]), height = std::stoll(arguments[4]), width = std::stoll(arguments[5]);
  const at::Tensor image = read({batch, 3, height, width});
  const at::Tensor filled = fill.run({image, read({batch, 1, height, width})})[0].contiguous();
  std::cout.write(static_cast<const char*>(filled.data_ptr()), static_cast<std::streamsize>(filled.nbytes()));
}
