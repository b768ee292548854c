// How conv2d.cpp cuts a convolution into Winograd tiles, and what conv2d.inc, the kernel, works on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "checks.h"

namespace fastinpaint {

struct PackedWeightMemory;      // weights, for all threads
struct WinogradInputMemory;     // transformed tiles, for all threads
struct WinogradWeightMemory;    // transformed weights of one task
struct WinogradProductMemory;   // products of one task
struct WinogradGradientMemory;  // transformed tiles of the gradient, for all threads
struct WinogradPairMemory;      // products of all pairs of channels, for all threads

// A kernel of k x k pixels (3 or 5) makes outputs x outputs pixels (4 or 2) of 6 x 6 pixels of the input with
// 36 products a pair of channels. A dilated kernel does so on every dilation-th pixel.
constexpr int kTileSide = 6;
constexpr int kTileArea = kTileSide * kTileSide;
constexpr int64_t kChannelGroup = 16;  // both numbers of channels are multiples of it

struct WinogradPlan {
  int64_t batch, height, width, inner;         // of the input, dense (B, H, W, inner)
  int64_t out_height, out_width, outer;        // of the output, dense (B, out_height, out_width, outer)
  int64_t kernel, padding, dilation, outputs;  // outputs: pixels of a side of a tile
  int64_t tile_rows, tile_columns;             // of an image, with every phase of the dilation
  int64_t block;                               // tiles that are transformed before their products are taken

  static constexpr int64_t kInputFloats = 1 << 20;  // of a block of tiles, which stays in the last cache
  static constexpr int64_t kTiles = 48;             // of one product: a multiple of the rows of gemm.inc
  static constexpr int64_t kOuter = 32;             // output channels of one task

  WinogradPlan(const Tensor& x, int64_t outer, int64_t kernel, int64_t padding, int64_t dilation)
      : batch(x.size(0)),
        height(x.size(2)),
        width(x.size(3)),
        inner(x.size(1)),
        out_height(height + 2 * padding - dilation * (kernel - 1)),
        out_width(width + 2 * padding - dilation * (kernel - 1)),
        outer(outer),
        kernel(kernel),
        padding(padding),
        dilation(dilation),
        outputs(kTileSide + 1 - kernel),
        tile_rows(tiles(out_height)),
        tile_columns(tiles(out_width)) {
    block = std::max(kInputFloats / (kTileArea * inner) / kTiles, int64_t{3}) * kTiles;
  }

  int64_t tile_count() const { return batch * tile_rows * tile_columns; }
  int64_t outer_blocks() const { return (outer + kOuter - 1) / kOuter; }

  // Floats between two positions of transformed tiles, weights of a task, and products. Never a power of two,
  // whose multiples share a few places of a cache.
  int64_t input_step() const { return block * inner + kChannelGroup; }
  int64_t gradient_step() const { return block * outer + kChannelGroup; }
  int64_t pair_step() const { return inner * outer + kChannelGroup; }
  int64_t weight_step() const { return kOuter * inner + kChannelGroup; }
  static constexpr int64_t kProductStep = kTiles * kOuter + kChannelGroup;

  // Where the weights of an output channel lie in [outer / kChannelGroup][inner][tap][kChannelGroup].
  int64_t packed_weight(int64_t channel) const {
    const int64_t group = channel / kChannelGroup * inner * kernel * kernel;
    return group * kChannelGroup + channel % kChannelGroup;
  }

  // First pixel of tile `index` of tile_rows or tile_columns: neighbours in an ordinary convolution, else
  // every dilation-th.
  int64_t first_pixel(int64_t index) const {
    return index / dilation * outputs * dilation + index % dilation;
  }

 private:
  int64_t tiles(int64_t pixels) const {
    const int64_t of_a_phase = (pixels + dilation - 1) / dilation;
    return (of_a_phase + outputs - 1) / outputs * dilation;
  }
};

// Element (outer, inner, ky, kx) of the weights lies at data + outer * outer_stride + ...; strides may be
// negative.
template <class Float>  // const or not
struct WeightView {
  Float* data;
  int64_t outer, inner, row, column;
};

}  // namespace fastinpaint
