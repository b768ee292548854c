// Binary images as rows of 64-bit words: pixel x is bit x % 64 of word x / 64.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastinpaint {

// Bits of one row of `width` bytes, each 0 or 1.
inline void pack_row(const bool* from, int64_t width, uint64_t* to) {
  for (int64_t word = 0; word * 64 < width; ++word) {
    const int64_t count = width - word * 64 < 64 ? width - word * 64 : 64;
    uint64_t value = 0;
    for (int64_t i = 0; i < count; ++i) value |= uint64_t(from[word * 64 + i]) << i;
    to[word] = value;
  }
}

// Bytes 0 or 1 of one row of `width` bits.
inline void unpack_row(const uint64_t* from, int64_t width, bool* to) {
  for (int64_t x = 0; x < width; x += 8) {
    const uint64_t eight = from[x / 64] >> (x % 64) & 0xff;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    if (x + 8 <= width) {
      const uint64_t one_per_byte = (eight * 0x0101010101010101) & 0x8040201008040201;
      const uint64_t bytes = (one_per_byte + 0x7f7f7f7f7f7f7f7f) >> 7 & 0x0101010101010101;
      std::memcpy(to + x, &bytes, 8);
      continue;
    }
#endif
    for (int64_t i = x; i < width && i < x + 8; ++i) to[i] = eight >> (i - x) & 1;
  }
}

// Fills every run of ones of `runs` that holds a one of `row`, a subset of it.
inline void fill_runs(const uint64_t* runs, uint64_t* row, int64_t words) {
  uint64_t carry = 0;
  for (int64_t i = 0; i < words; ++i) {
    // The carry of an addition runs from the lowest seed of a run to the run's end.
    uint64_t sum;
    const bool over = __builtin_add_overflow(runs[i], row[i], &sum);
    const bool over_again = __builtin_add_overflow(sum, carry, &sum);
    row[i] |= runs[i] & (runs[i] ^ sum);
    carry = over | over_again;
  }
  carry = 0;
  for (int64_t i = words - 1; i >= 0; --i) {
    uint64_t seeds = row[i] | (carry << 63 & runs[i]), open = runs[i];
    if ((seeds >> 1 & open & ~seeds) != 0)
      for (int shift = 1; shift < 64; shift *= 2) {
        seeds |= open & seeds >> shift;
        open &= open >> shift;
      }
    row[i] = seeds;
    carry = seeds & 1;
  }
}

// Adds to `row` the pixels of `open` that touch a one of the rows above and below it (either may be null).
inline bool join_neighbours(const uint64_t* open, const uint64_t* above, const uint64_t* below, int64_t words,
                            uint64_t* row) {
  const auto either = [&](int64_t i) { return (above ? above[i] : 0) | (below ? below[i] : 0); };
  uint64_t left = 0, here = either(0), added = 0;
  for (int64_t i = 0; i < words; ++i) {
    const uint64_t right = i + 1 < words ? either(i + 1) : 0;
    const uint64_t reach = here | here << 1 | here >> 1 | left >> 63 | right << 63;
    const uint64_t reached = reach & open[i] & ~row[i];
    row[i] |= reached;
    added |= reached;
    left = here;
    here = right;
  }
  return added != 0;
}

// Grows `edges` inside `weak`, its superset, over 8-connected pixels of the rows [first, last); every row is
// filled (fill_runs) before and after. Looks at the rows that are `stale`, and at those whose neighbour has
// grown; no row is stale in the end. weak, edges: (height, words); stale: (height,).
inline void grow_edges(const uint64_t* weak, uint64_t* edges, int64_t words, int64_t first, int64_t last,
                       unsigned char* stale) {
  const auto visit = [&](int64_t y) {
    if (!stale[y]) return false;
    stale[y] = 0;
    uint64_t* row = edges + y * words;
    const uint64_t *above = y > first ? row - words : nullptr, *below = y + 1 < last ? row + words : nullptr;
    if (!join_neighbours(weak + y * words, above, below, words, row)) return false;
    fill_runs(weak + y * words, row, words);
    if (above) stale[y - 1] = 1;
    if (below) stale[y + 1] = 1;
    return true;
  };
  for (bool growing = true; growing;) {
    growing = false;
    for (int64_t y = first; y < last; ++y) visit(y);
    for (int64_t y = last - 1; y >= first; --y) growing |= visit(y);
  }
}

}  // namespace fastinpaint
