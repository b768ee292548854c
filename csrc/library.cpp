// `fastinpaint._C`: every schema of the namespace fastinpaint, and the CPU kernels. An operator's kernels are
// registered in csrc/cpu/<op>.cpp and, for `fastinpaint._C_cuda`, in csrc/cuda/<op>.cu; its fake and its
// autograd formula in fastinpaint/ops/<op>.py.
#include "module.h"

#include "checks.h"
#include "cpu/simd/isa.h"

STABLE_TORCH_LIBRARY(fastinpaint, m) {
  m.def("cpu_isa() -> str");
  m.def(
      "canny(Tensor image, float[] weights, float low_threshold, float high_threshold, Tensor? mask) -> "
      "Tensor");
  m.def(
      "canny_pyramid(Tensor image, SymInt[] sizes, float[] weights, float low_threshold, float "
      "high_threshold)"
      " -> Tensor[]");
  m.def(
      "patch_attention(Tensor features, int kernel_size, int stride, float softmax_scale, bool overlap_add) "
      "-> Tensor");
  m.def(
      "patch_attention_backward(Tensor grad_output, Tensor features, int kernel_size, int stride, "
      "float softmax_scale, bool overlap_add) -> Tensor");
  m.def("pooled_attention(Tensor query, Tensor key, Tensor value) -> (Tensor output, Tensor lse)");
  m.def(
      "pooled_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, "
      "Tensor lse) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)");
  m.def(
      "instance_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? scale, float eps, "
      "bool relu, int padding) -> (Tensor output, Tensor mean, Tensor rstd)");
  m.def(
      "instance_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, "
      "Tensor? residual, Tensor? scale, bool relu, int padding, bool residual_gradient) -> (Tensor grad_x, "
      "Tensor sums, Tensor grad_residual)");
  m.def("conv2d(Tensor x, Tensor weight, Tensor? bias, int padding, int dilation, bool relu) -> Tensor");
  m.def("conv2d_backward(Tensor grad, Tensor weight, int padding, int dilation) -> Tensor");
  m.def("conv2d_weight_backward(Tensor grad, Tensor x, Tensor weight, int padding, int dilation) -> Tensor");
  m.def("sobel_edges(Tensor image) -> Tensor");
  m.def("sobel_edges_backward(Tensor gradients) -> Tensor");
  m.def("edge_priority(Tensor edges, int kernel_size, float sigma, int iterations) -> Tensor");
  m.def(
      "structure_loss(Tensor image, Tensor[] predictions, Tensor[] edges, float edge_alpha, float grad_alpha)"
      " -> (Tensor terms, Tensor coefficients, Tensor priority, Tensor signs)");
  m.def(
      "structure_loss_backward(Tensor grad_terms, Tensor coefficients, Tensor priority, Tensor signs,"
      " Tensor[] predictions) -> Tensor[]");
}

namespace {

std::string cpu_isa() {
  return fastinpaint::isa_name(fastinpaint::active_isa());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

FASTINPAINT_MODULE(_C)
