// What pooled_attention.cpp prepares and what pooled_attention.inc, the kernel, makes of it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastinpaint {

constexpr int kKeys = 6;             // keys taken at a time: their sums with two vectors fit the registers
constexpr int64_t kBlockRows = 512;  // queries that the backward keeps packed at a time
constexpr int64_t kMostLanes = 16;   // floats in the widest vector
constexpr int64_t kMostTile = 2 * kMostLanes;

// One entry of the batch; rows are dense.
struct AttentionInputs {
  int64_t keys, width, value_width;
  const float* query;   // (queries, width)
  const float* key;     // (keys, width), times log2(e), so that scores are powers of two
  const float* centre;  // (width,): the mean row of `key`
  const float* value;   // (keys, value_width)
  float key_radius;     // the largest Euclidean distance of a row of `key` from `centre`
  float value_sum;      // no sum of absolute values in a column of `value` is larger

  int64_t widths() const { return width + value_width; }

  int64_t forward_scratch() const { return widths() * kMostTile; }
};

struct AttentionOutputs {
  float* output;  // (queries, value_width)
  float* lse;     // (queries,): log2 of the sum of the powers
};

struct AttentionGradients {
  const float* grad;    // (queries, value_width), of the output
  const float* output;  // (queries, value_width)
  const float* lse;     // (queries,)
  float* query;         // (queries, width)
  float* key;           // (keys, width), of the caller's unscaled key; summed over the queries of the call
  float* value;         // (keys, value_width), likewise

  static constexpr int64_t kLaneSums = 4096;  // 16 KiB

  // Keys whose gradients are summed lane by lane at a time.
  static int64_t key_block(const AttentionInputs& inputs, int64_t lanes) {
    const int64_t fitting = kLaneSums / (std::max<int64_t>(inputs.widths(), 1) * lanes);
    return std::max<int64_t>(fitting / kKeys, 1) * kKeys;
  }

  static int64_t scratch_size(const AttentionInputs& inputs) {
    const int64_t lane_sums = std::max(kLaneSums, kKeys * inputs.widths() * kMostLanes);
    return (2 * inputs.width + inputs.value_width + 2) * kBlockRows + lane_sums;
  }
};

}  // namespace fastinpaint
