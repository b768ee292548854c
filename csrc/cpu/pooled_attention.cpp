// softmax(query key^T) value on the CPU, without the matrix of scores.
#include "cpu/pooled_attention.h"

#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/isa.h"

#define FASTINPAINT_KERNEL "cpu/pooled_attention.inc"
#include "cpu/simd/foreach_isa.inc"

namespace fastinpaint {
namespace {

constexpr int64_t kForwardRows = 128;   // queries of a task
constexpr int64_t kBackwardRows = 256;  // the fewest, because each task has its own sums over the keys
constexpr int64_t kBackwardTasks = 32;  // that a batch is divided into, whatever the number of threads

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct KeyMemory;     // the keys of a batch, scaled
struct TileMemory;    // what one task works on
struct KeySumMemory;  // sums over the keys, of each chunk of queries

// A batch with its keys as the kernel wants them. The mean key serves to bound scores tightly, and is not
// subtracted: one key far away would move it, and the others would lose their digits.
class Batch {
 public:
  Batch(const Tensor& query, const Tensor& key, const Tensor& value)
      : entries_(query.size(0)),
        queries_(query.size(1)),
        keys_(key.size(1)),
        width_(key.size(2)),
        value_width_(value.size(2)),
        query_(query.const_data_ptr<float>()),
        value_(value.const_data_ptr<float>()),
        key_(scratch<KeyMemory, float>(entries_ * keys_ * width_)),
        centres_(entries_ * width_),
        radii_(entries_),
        value_sums_(entries_) {
    const float* from = key.const_data_ptr<float>();
    for_each_task(entries_, [&](int64_t entry) {
      scale_keys(from + entry * keys_ * width_, entry);
      bound_values(entry);
    });
  }

  AttentionInputs operator[](int64_t entry) const {
    return {keys_,
            width_,
            value_width_,
            query_ + entry * queries_ * width_,
            key_ + entry * keys_ * width_,
            centres_.data() + entry * width_,
            value_ + entry * keys_ * value_width_,
            radii_[entry],
            value_sums_[entry]};
  }

 private:
  void scale_keys(const float* from, int64_t entry) {
    const double log2_of_e = 1.4426950408889634, largest = std::numeric_limits<float>::max();
    float *to = key_ + entry * keys_ * width_, *centre = centres_.data() + entry * width_;
    std::vector<double> mean(width_, 0.0);
    for (int64_t n = 0; n < keys_; ++n)
      for (int64_t c = 0; c < width_; ++c) mean[c] += from[n * width_ + c];
    for (int64_t c = 0; c < width_; ++c) centre[c] = float(mean[c] / double(keys_) * log2_of_e);
    float most = 0.0f;
    for (int64_t n = 0; n < keys_; ++n) {
      float square = 0.0f;
      for (int64_t c = 0; c < width_; ++c) {
        const double scaled = from[n * width_ + c] * log2_of_e;
        // Finite, so that a weight of 0 times an infinite key is no NaN; NaN stays.
        const float x = float(std::max(std::min(scaled, largest), -largest));
        to[n * width_ + c] = x;
        square += (x - centre[c]) * (x - centre[c]);
      }
      most = square <= most ? most : square;  // keeps a NaN
    }
    radii_[entry] = std::sqrt(most);
  }

  void bound_values(int64_t entry) {
    const float* value = value_ + entry * keys_ * value_width_;
    float most = 0.0f;
    for (int64_t i = 0; i < keys_ * value_width_; ++i) {
      const float x = std::fabs(value[i]);
      most = x <= most ? most : x;  // keeps a NaN
    }
    value_sums_[entry] = most * float(keys_);
  }

  int64_t entries_, queries_, keys_, width_, value_width_;
  const float *query_, *value_;
  float* key_;                  // (entries, keys, width)
  std::vector<float> centres_;  // (entries, width)
  std::vector<float> radii_, value_sums_;
};

void check_inputs(const Tensor& query, const Tensor& key, const Tensor& value) {
  const auto check = [](const Tensor& tensor, const char* name, const char* wanted) {
    check_cpu(tensor, name);
    check_dim(tensor, 3, name, wanted);
    check_type(tensor, ScalarType::Float, name);
  };
  check(query, "query", "(B, N, d)");
  check(key, "key", "(B, M, d)");
  check(value, "value", "(B, M, dv)");
  check_size(key, 0, query.size(0), "key", "the batch of query");
  check_size(value, 0, query.size(0), "value", "the batch of query");
  check_size(key, 2, query.size(2), "key", "the width of query");
  check_size(value, 1, key.size(1), "value", "the positions of key");
  STD_TORCH_CHECK(key.size(1) > 0, "key must hold at least one position, got shape ", shape_of(key));
}

// A tensor with a row for each query.
void check_rows(const Tensor& tensor, const char* name, const Tensor& query, int64_t width) {
  check_cpu(tensor, name);
  check_type(tensor, ScalarType::Float, name);
  check_dim(tensor, 3, name, "a row for each query");
  check_size(tensor, 0, query.size(0), name, "the batch of query");
  check_size(tensor, 1, query.size(1), name, "the positions of query");
  check_size(tensor, 2, width, name, "the width of a row");
}

// The backward of a batch. Chunks of queries have sums over the keys of their own, which are added in the
// order of the chunks: the same bits for any number of threads.
class Backward {
 public:
  Backward(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionGradients& all)
      : inputs_(query, key, value), all_(all), batch_(query.size(0)), queries_(query.size(1)) {
    const AttentionInputs in = inputs_[0];
    key_count_ = in.keys * in.width;
    value_count_ = in.keys * in.value_width;
    rows_ = std::max(kBackwardRows, ceil_div(queries_, ceil_div(kBackwardTasks, batch_)));
    chunks_ = ceil_div(queries_, rows_);
    key_sums_ = scratch<KeySumMemory, float>(batch_ * chunks_ * (key_count_ + value_count_));
    value_sums_ = key_sums_ + batch_ * chunks_ * key_count_;
  }

  void run() const {
    for_each_task(batch_ * chunks_, [&](int64_t task) { differentiate(task); });
    for_each_task(batch_ * kParts, [&](int64_t task) {
      const int64_t entry = task / kParts, part = task % kParts;
      combine(key_sums_, key_count_, entry, part, all_.key);
      combine(value_sums_, value_count_, entry, part, all_.value);
    });
  }

 private:
  static constexpr int64_t kParts = 16;  // of an entry's sums, for the threads

  void differentiate(int64_t task) const {
    const int64_t entry = task / chunks_, first = task % chunks_ * rows_, row = entry * queries_;
    const AttentionInputs in = inputs_[entry];
    const AttentionGradients out{all_.grad + row * in.value_width,
                                 all_.output + row * in.value_width,
                                 all_.lse + row,
                                 all_.query + row * in.width,
                                 key_sums_ + task * key_count_,
                                 value_sums_ + task * value_count_};
    std::fill_n(out.key, key_count_, 0.0f);
    std::fill_n(out.value, value_count_, 0.0f);
    FASTINPAINT_DISPATCH(differentiate_rows, in, out, first, std::min(first + rows_, queries_),
                         scratch<TileMemory, float>(out.scratch_size(in)));
  }

  // Adds part of the sums of an entry's chunks, each of `count` floats.
  void combine(const float* sums, int64_t count, int64_t entry, int64_t part, float* to) const {
    const int64_t begin = count * part / kParts, end = count * (part + 1) / kParts;
    sums += entry * chunks_ * count;
    to += entry * count;
    std::fill(to + begin, to + end, 0.0f);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk, sums += count)
      for (int64_t i = begin; i < end; ++i) to[i] += sums[i];
  }

  Batch inputs_;
  AttentionGradients all_;
  int64_t batch_, queries_, key_count_, value_count_, rows_, chunks_;
  float *key_sums_, *value_sums_;  // (batch, chunks, key_count) and (batch, chunks, value_count)
};

}  // namespace

std::tuple<Tensor, Tensor> pooled_attention(const Tensor& query, const Tensor& key, const Tensor& value) {
  check_inputs(query, key, value);
  const Tensor q = torch::stable::contiguous(query), k = torch::stable::contiguous(key),
               v = torch::stable::contiguous(value);
  const int64_t batch = q.size(0), queries = q.size(1), value_width = v.size(2);
  Tensor output = torch::stable::new_empty(q, {batch, queries, value_width});
  Tensor lse = torch::stable::new_empty(q, {batch, queries});
  const Batch inputs(q, k, v);
  float *outputs = output.mutable_data_ptr<float>(), *lses = lse.mutable_data_ptr<float>();
  const int64_t chunks = ceil_div(queries, kForwardRows);
  for_each_task(batch * chunks, [&](int64_t task) {
    const int64_t entry = task / chunks, first = task % chunks * kForwardRows;
    const AttentionInputs in = inputs[entry];
    const AttentionOutputs out{outputs + entry * queries * value_width, lses + entry * queries};
    FASTINPAINT_DISPATCH(attend_rows, in, out, first, std::min(first + kForwardRows, queries),
                         scratch<TileMemory, float>(in.forward_scratch()));
  });
  return {output, lse};
}

std::tuple<Tensor, Tensor, Tensor> pooled_attention_backward(const Tensor& grad, const Tensor& query,
                                                             const Tensor& key, const Tensor& value,
                                                             const Tensor& output, const Tensor& lse) {
  check_inputs(query, key, value);
  check_rows(grad, "grad", query, value.size(2));
  check_rows(output, "output", query, value.size(2));
  check_rows(torch::stable::unsqueeze(lse, -1), "lse", query, 1);
  const Tensor q = torch::stable::contiguous(query), k = torch::stable::contiguous(key),
               v = torch::stable::contiguous(value), g = torch::stable::contiguous(grad),
               o = torch::stable::contiguous(output), l = torch::stable::contiguous(lse);
  Tensor grad_query = torch::stable::empty_like(q), grad_key = torch::stable::empty_like(k),
         grad_value = torch::stable::empty_like(v);
  if (q.size(0) > 0) {
    const AttentionGradients all{g.const_data_ptr<float>(),          o.const_data_ptr<float>(),
                                 l.const_data_ptr<float>(),          grad_query.mutable_data_ptr<float>(),
                                 grad_key.mutable_data_ptr<float>(), grad_value.mutable_data_ptr<float>()};
    Backward(q, k, v, all).run();
  }
  return {grad_query, grad_key, grad_value};
}

}  // namespace fastinpaint

STABLE_TORCH_LIBRARY_IMPL(fastinpaint, CPU, m) {
  m.impl("pooled_attention", TORCH_BOX(&fastinpaint::pooled_attention));
  m.impl("pooled_attention_backward", TORCH_BOX(&fastinpaint::pooled_attention_backward));
}
