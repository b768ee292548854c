// What canny.cpp prepares for a call and what canny.inc, the kernel, makes of one tile.
#pragma once

#include <cstdint>
#include <vector>

namespace fastinpaint {

constexpr int64_t kStrip = 512;  // widest tile, in pixels: its rows stay in the caches. A multiple of 64
constexpr int64_t kBand = 16;    // rows that a tile takes through all stages at a time
constexpr int64_t kTileRows = 2 * kBand + 4;  // rows that a stage keeps
constexpr int64_t kBlurredRows = 4;           // rows that are blurred along H together

// Real: float or double, the image's type.
template <class Real>
struct CannyPlan {
  int64_t height, width;              // of the edge map
  int64_t image_height, image_width;  // of the image; resized to the nearest pixel where they differ
  std::vector<int32_t> columns;       // (width,): of the image, for each of the edge map
  int64_t channels;                   // 1: grey, 3: RGB; planes of image_height * image_width values
  int64_t words;                      // 64-bit words in a row of bits
  int64_t radius;                     // of the Gaussian
  std::vector<double> weights;        // (radius + 1,) by distance
  Real low, high;                     // thresholds; low > 0
  std::vector<Real> coverage;         // see coverage_row
  int64_t pad;                        // columns kept left and right of a strip, at least radius + 16

  // The part of the Gaussian at each pixel of row y that lies inside the image, as scikit-image computes it.
  // It depends on the distance to the borders alone: a row for each distance to the top and bottom. Starts at
  // x = -pad.
  const Real* coverage_row(int64_t y) const {
    const int64_t classes = height < 2 * radius + 1 ? height : 2 * radius + 1;
    const int64_t from_end = height - 1 - y;
    const int64_t row = y < radius ? y : from_end < radius ? classes - 1 - from_end : radius;
    return coverage.data() + row * (width + 2 * pad + kStrip);
  }

  // Values in a row of the working memory: an odd number of cache lines, so that a column does not fall into
  // one set.
  int64_t stride() const {
    const int64_t strip = words * 64 < kStrip ? words * 64 : kStrip;
    return (strip + 2 * pad) | 8;
  }

  int64_t source_rows() const { return 2 * kBand + 2 * radius + 4; }

  // Bytes of the working memory of one tile: the rows that TileKernel keeps.
  int64_t tile_bytes(bool masked) const {
    const int64_t doubles = (masked ? 2 : 1) * source_rows() + kBlurredRows + kTileRows + 1;
    const int64_t reals = 4 * kTileRows + 1;
    return stride() * (doubles * sizeof(double) + reals * sizeof(Real));
  }
};

template <class Real>
struct CannyTile {
  const Real* image;       // (channels, image_height, image_width)
  const bool* mask;        // (height, width), or null
  const uint64_t* valid;   // (height, words): bits of the pixels that may be edges
  int64_t y0, y1, x0, x1;  // rows and columns of the tile; x0 is a multiple of 64
  uint64_t* weak;          // (height, words): out, local maxima at or above the low threshold
  uint64_t* strong;        // (height, words): out, those at or above the high one
};

}  // namespace fastinpaint
