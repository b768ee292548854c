// Errors on purpose: each of them must be reported, or a run without reports means nothing. See planted.py.
#include <cstdint>
#include <cstring>
#include <vector>

#include "checks.h"
#include "cpu/scratch.h"

#define PLANTED extern "C" __attribute__((visibility("default")))

using fastinpaint::RowMemory;
using fastinpaint::scratch;
typedef float Eight __attribute__((vector_size(32)));

// `values` is the memory of a torch tensor of `count` elements.
PLANTED float read_before(const float* values, int64_t count) {
  return values[-1];
}

PLANTED float read_past(const float* values, int64_t count) {
  return values[count];
}

// Its last lane lies past the end.
PLANTED float read_vector_past(const float* values, int64_t count) {
  Eight lanes;
  std::memcpy(&lanes, values + count - 7, sizeof lanes);
  return lanes[0] + lanes[7];
}

PLANTED float write_past(float* values, int64_t count) {
  values[count] = 1;
  return 0;
}

PLANTED float read_past_scratch(const float*, int64_t count) {
  scratch<RowMemory, float>(2 * count);
  return scratch<RowMemory, float>(count)[count];
}

PLANTED float read_stale_scratch(const float*, int64_t count) {
  const float* stale = scratch<RowMemory, float>(count);
  scratch<RowMemory, float>(count);
  return stale[0];
}

PLANTED float index_past_vector(const float*, int64_t count) {
  return std::vector<float>(count)[count];
}

PLANTED float overflow(const float*, int64_t count) {
  return static_cast<float>(INT64_MAX - count + 2 * count);
}

PLANTED float shift_by_width(const float*, int64_t count) {
  return static_cast<float>(int64_t{1} << (64 + count));
}

PLANTED float misaligned(const float* values, int64_t) {
  return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(values) + 1);
}

PLANTED float cast_out_of_range(const float*, int64_t count) {
  return static_cast<float>(static_cast<int32_t>(1e20 * static_cast<double>(count)));
}

// Two chunks write the same element.
PLANTED float race(float* values, int64_t) {
  torch::stable::parallel_for(0, 2, 1,
                              [&](int64_t begin, int64_t) { values[0] = static_cast<float>(begin); });
  return values[0];
}
