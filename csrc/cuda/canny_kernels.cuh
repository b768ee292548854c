// Canny on the GPU. A block takes a tile of 32 x 64 pixels from the image to its edges:
//
//   detect_edges   blurs, differentiates, thins, and finds the components of weak pixels inside the tile. A
//                  component with a strong pixel is an edge; one without that stays inside the tile is none;
//                  one that touches the tile's border is open and becomes a node. The output holds, for now,
//                  0 (no edge), 1 (edge) or kFirstOpen + the node's number in its tile.
//   join_tiles     unites nodes that touch across a border, and nodes with kStrong where they touch an edge.
//   resolve_edges  replaces each open pixel by whether kStrong is its root.
//
// Components are trees in an array of parents: a parent is never larger than its child, a root is its own
// parent, and kStrong, less than every node, is the root of all edges. unite() only ever lowers parents, with
// atomicMin, so the order of threads changes the trees on the way but never who is connected; nobody waits
// for anybody. The same code works inside a tile (on pixels, in shared memory) and between tiles (on nodes).
//
// Gaussians wider than a tile's memory go through global memory first: store_weights, blur_down, blur_across,
// then detect_smooth in place of detect_edges.
//
// The file is C++ that any compiler takes where the names of device.cuh and a handful of CUDA's are given:
// tests/cuda_on_cpu runs it so.
#pragma once

#include <cstdint>

#include "canny_pixel.h"
#ifdef __CUDACC__
  #include "device.cuh"
#else
  #include "cuda_on_cpu.h"
#endif

namespace fastinpaint {

constexpr int kTileHeight = 32, kTileWidth = 64;
constexpr int kThreads = 256;  // of a block
constexpr int kPixels = 8;     // pixels of a row that a thread decides on
constexpr int kBlurRun = 4;    // pixels of a line that a thread blurs together
static_assert(kTileHeight * kTileWidth == kThreads * kPixels);

constexpr int kSmoothHeight = kTileHeight + 4, kSmoothWidth = kTileWidth + 4;  // two pixels around a tile
constexpr int kSmoothStride = kSmoothWidth + 1;  // odd: a column lies in all banks of shared memory
constexpr int kMagnitudeHeight = kTileHeight + 2, kMagnitudeStride = kTileWidth + 3;

constexpr int kBorder = 2 * (kTileWidth + kTileHeight);  // pixels on a tile's border, corners twice; nodes
constexpr int kStrong = -1;
constexpr int kClosed = kBorder;  // in place of a node: the component stays inside the tile
constexpr int kFirstOpen = 2;
static_assert(kFirstOpen + kBorder <= 256);

constexpr int kMaxScales = 8;
constexpr int kMaxTileRadius = 40;   // of a Gaussian whose weights travel with the launch
constexpr int kMaxTableRadius = 12;  // and whose coverage does, too
constexpr int kTableSize = (kMaxTableRadius + 1) * (kMaxTableRadius + 2);
static_assert(kTableSize <= kThreads);
constexpr int kWeightChunk = 448;  // weights of one launch of store_weights: parameters end at 4 KiB

// One edge map of every image of the batch.
struct CannyScale {
  int height, width;
  int row_step, column_step;  // from one pixel to the next, in pixels of the image; 0: no whole number
  int tiles_across, tiles;    // tiles in a row of tiles, in an image
  int first_tile;             // number of tiles in the scales before
  int64_t first_pixel;        // number of pixels in the scales before
  unsigned char* labels;      // (batch, height, width): the output
};

struct CannyJob {
  const void* image;         // (batch, channels, image_height, image_width)
  int64_t image_strides[4];  // in pixels
  int channels, image_height, image_width;
  const unsigned char* mask;  // (batch, height, width), 0 or 1; or null
  int64_t mask_strides[3];
  float low, high;  // thresholds; low > 0
  int radius;       // of the Gaussian
  int scale_count;
  CannyScale scales[kMaxScales];
  int* parents;  // (tiles, kBorder); of the nodes, numbered from the first of their image

  double weights[kMaxTileRadius + 1];  // by distance
  // The part of the Gaussian inside the image (scikit-image's, its epsilon added), (radius + 1, radius + 1)
  // by distance to the next border along H and W; then 1 / its last column. Of Gaussians that the tile's
  // memory holds as doubles.
  float cover_table[kTableSize];
  // For a wider Gaussian; maps hold all scales, (pixels,).
  double* far_weights;     // (radius + 1,)
  float *columns, *cover;  // blurred along H: image, mask
  float* smooth;
};

struct WeightChunk {
  double values[kWeightChunk];
};

struct Tile {
  int scale, image, number;  // number: of the tile in its image
  int height, width;         // of the edge map
  int y0, x0;

  FASTINPAINT_HD Tile(const CannyJob& job, unsigned block) : scale(0) {
    while (scale + 1 < job.scale_count && int(block) >= job.scales[scale + 1].first_tile) ++scale;
    const CannyScale& map = job.scales[scale];
    number = int(block) - map.first_tile;
    image = number / map.tiles;
    number -= image * map.tiles;
    height = map.height;
    width = map.width;
    y0 = number / map.tiles_across * kTileHeight;
    x0 = number % map.tiles_across * kTileWidth;
  }

  // The image's first pixel among those of its scale's map.
  FASTINPAINT_HD int64_t first_pixel() const { return int64_t(image) * height * width; }

  // The image's part of the output, (height, width).
  FASTINPAINT_HD unsigned char* labels(const CannyJob& job) const {
    return job.scales[scale].labels + first_pixel();
  }

  // The image's nodes, (tiles, kBorder).
  FASTINPAINT_HD int* parents(const CannyJob& job) const {
    return job.parents + (job.scales[scale].first_tile + int64_t(image) * job.scales[scale].tiles) * kBorder;
  }

  // The image's part of a map that holds all scales.
  FASTINPAINT_HD float* part_of(const CannyJob& job, float* map) const {
    return map + job.scales[scale].first_pixel + first_pixel();
  }
};

FASTINPAINT_HD int clamp(int value, int size) {
  return value < 0 ? 0 : value < size ? value : size - 1;
}

// Pixel of the image that position `i` of `size` shows; nearest_resize has the rule.
FASTINPAINT_HD int nearest(int i, int size, int image_size) {
  return size == image_size ? i : int(unsigned(i) * unsigned(image_size) / unsigned(size));
}

FASTINPAINT_HD bool is_valid(const CannyJob& job, const Tile& tile, int y, int x) {
  return job.mask[tile.image * job.mask_strides[0] + y * job.mask_strides[1] + x * job.mask_strides[2]] != 0;
}

// Whether the mask lets the inner pixel (y, x) be an edge: its 3 x 3 neighbourhood counts.
FASTINPAINT_HD bool is_inside_mask(const CannyJob& job, const Tile& tile, int y, int x) {
  bool valid = true;
  for (int i = 0; i < 9; ++i) valid = valid && is_valid(job, tile, y - 1 + i / 3, x - 1 + i % 3);
  return valid;
}

// The grey image at (y, x) of the edge map, zero outside it and outside the mask.
template <class Pixel, bool kMasked>
FASTINPAINT_HD float read_gray(const CannyJob& job, const Tile& tile, int y, int x) {
  if (y < 0 || x < 0 || y >= tile.height || x >= tile.width) return 0.0f;
  if (kMasked && !is_valid(job, tile, y, x)) return 0.0f;
  const Pixel* pixel = static_cast<const Pixel*>(job.image) + tile.image * job.image_strides[0] +
                       nearest(y, tile.height, job.image_height) * job.image_strides[2] +
                       nearest(x, tile.width, job.image_width) * job.image_strides[3];
  if (job.channels == 1) return float(pixel[0]);
  const int64_t plane = job.image_strides[1];
  return gray_of(float(pixel[0]), float(pixel[plane]), float(pixel[2 * plane]));
}

// 1 where the image counts, 0 outside it and outside the mask.
template <bool kMasked>
FASTINPAINT_HD float read_cover(const CannyJob& job, const Tile& tile, int y, int x) {
  if (y < 0 || x < 0 || y >= tile.height || x >= tile.width) return 0.0f;
  return !kMasked || is_valid(job, tile, y, x) ? 1.0f : 0.0f;
}

// ---- Components -------------------------------------------------------------------------------------------

// Parents in a block's memory. They are read by an atomic operation, too: a race detector takes nothing else.
struct TileParents {
  int* at;

  __device__ int load(int node) const { return atomicOr(at + node, 0); }
};

// Parents in global memory. Reads of a popular root must not queue up as atomic operations do.
struct NodeParents {
  int* at;

  __device__ int load(int node) const { return load_relaxed(at + node); }
};

// The root of a node (kStrong is its own); shortens the path for those who come after.
template <class Parents>
__device__ inline int find_root(Parents parents, int node) {
  if (node < 0) return node;
  int parent = parents.load(node);
  while (parent >= 0 && parent != node) {
    const int next = parents.load(parent);
    if (next != parent) atomicMin(parents.at + node, next);
    node = parent;
    parent = next;
  }
  return parent;
}

template <class Parents>
__device__ inline void unite(Parents parents, int a, int b) {
  for (;;) {
    a = find_root(parents, a);
    b = find_root(parents, b);
    if (a == b) return;
    const int child = a > b ? a : b, root = a > b ? b : a;
    const int before = atomicMin(parents.at + child, root);
    if (before == child) return;
    a = before;  // someone else gave the child a parent meanwhile: that one belongs to the root, too
    b = root;
  }
}

// ---- Smoothing --------------------------------------------------------------------------------------------

// Where a tile's arrays lie in shared memory. Those of later stages take the place of dead ones. Source and
// column are kept as doubles, so that each value is converted once, or as floats, so that wider Gaussians
// fit.
template <class Stored>
struct TileMemory {
  int radius, source_height, source_width, stride;  // of source; column has its width and stride
  unsigned char *weak, *strong;  // (kTileHeight, 8): bits of a row, pixel x is bit x % 8 of byte x / 8
  float* table;                  // job.cover_table; or (2, kSmoothHeight): see fill_cover
  float* covered;                // (kSmoothHeight, kSmoothStride), where the table does not serve
  Stored* source;                // (source_height, stride)
  float* smooth;                 // (kSmoothHeight, kSmoothStride), after source
  int* parents;                  // (kTileHeight, kTileWidth), after smooth
  Stored* column;                // (kSmoothHeight, stride)
  float* magnitude;              // (kMagnitudeHeight, kMagnitudeStride), after column
  int* nodes;                    // (kTileHeight, kTileWidth), after magnitude
  unsigned char* end;

  FASTINPAINT_HD TileMemory(unsigned char* memory, int radius, bool has_covered)
      : radius(radius),
        source_height(kSmoothHeight + 2 * radius),
        source_width(kSmoothWidth + 2 * radius),
        stride(source_width | 1) {
    weak = memory;
    strong = weak + kThreads;
    table = reinterpret_cast<float*>(strong + kThreads);
    covered = table + (kTableSize + 3) / 4 * 4;
    source = reinterpret_cast<Stored*>(covered + (has_covered ? kSmoothHeight * kSmoothStride : 0));
    smooth = reinterpret_cast<float*>(source);
    parents = reinterpret_cast<int*>(source);
    column = source + source_height * stride;
    magnitude = reinterpret_cast<float*>(column);
    nodes = reinterpret_cast<int*>(column);
    end = reinterpret_cast<unsigned char*>(column + kSmoothHeight * stride);
  }
};
static_assert(kTableSize >= 2 * kSmoothHeight);
template <bool kMasked, class Stored>
constexpr bool kHasCovered = kMasked || sizeof(Stored) == sizeof(float);
static_assert(kSmoothHeight * kSmoothStride % 4 == 0);  // what follows covered is aligned
static_assert(kSmoothHeight * kSmoothStride >= kTileHeight * kTileWidth);
static_assert(kSmoothHeight * kSmoothStride >= kMagnitudeHeight * kMagnitudeStride);

// Values of shared memory along a row (step 1) or a column.
template <class Stored>
struct Line {
  const Stored* middle;
  int step;

  FASTINPAINT_HD double operator()(int i) const { return middle[i * step]; }
};

// The part of the Gaussian inside the image, for each pixel of the smooth image. Without a mask it depends on
// the distance to the borders alone: the columns [left, right), far enough from the left and right border,
// have one value for each row.
struct Cover {
  int left, right;
  const float* inner;    // (kSmoothHeight,): of those columns
  const float* covered;  // (kSmoothHeight, kSmoothStride): of the others

  // Divides a run of values.
  FASTINPAINT_HD void divide(int row, int column, float (&run)[kBlurRun]) const {
    FASTINPAINT_UNROLL()
    for (int k = 0; k < kBlurRun; ++k) {
      const bool is_inner = column + k >= left && column + k < right;
      run[k] /= is_inner ? inner[row] : covered[row * kSmoothStride + column + k];
    }
  }
};

template <class Stored>
__device__ inline Cover fill_cover(const CannyJob& job, const Tile& tile, const TileMemory<Stored>& m) {
  const int radius = m.radius, first = tile.x0 - 2;
  float *down = m.table, *inner = m.table + kSmoothHeight;
  if (int(threadIdx.x) < kSmoothHeight) {
    const int row = threadIdx.x;
    down[row] = blurred(job.weights, radius, 1.0, tile.y0 - 2 + row, tile.height);
    inner[row] = blurred(job.weights, radius, down[row], radius, 2 * radius + 1) + kFloatEps;
  }
  __syncthreads();
  const int left = clamp(radius - first, kSmoothWidth + 1),
            end = clamp(tile.width - radius - first, kSmoothWidth + 1), right = end > left ? end : left;
  for (int i = threadIdx.x; i < kSmoothHeight * (left + kSmoothWidth - right); i += kThreads) {
    const int row = i % kSmoothHeight, outer = i / kSmoothHeight,
              column = outer < left ? outer : outer - left + right;
    m.covered[row * kSmoothStride + column] =
        blurred(job.weights, radius, down[row], first + column, tile.width) + kFloatEps;
  }
  return {left, right, inner, m.covered};
}

// The same from job.cover_table, for images at least 2 * radius + 1 pixels high and wide.
struct TableCover {
  const float* table;  // job.cover_table, in shared memory
  int radius, first_y, first_x, last_y, last_x;

  FASTINPAINT_HD TableCover(const Tile& tile, const float* table, int radius)
      : table(table),
        radius(radius),
        first_y(tile.y0 - 2),
        first_x(tile.x0 - 2),
        last_y(tile.height - 1),
        last_x(tile.width - 1) {}

  // Distance to the nearer border, from 0 to radius.
  FASTINPAINT_HD int distance(int i, int last) const {
    const int nearer = i < last - i ? i : last - i;
    return nearer < 0 ? 0 : nearer < radius ? nearer : radius;
  }

  // Divides a run of values.
  FASTINPAINT_HD void divide(int row, int column, float (&run)[kBlurRun]) const {
    const int x = first_x + column, y = distance(first_y + row, last_y);
    const float* line = table + y * (radius + 1);
    if (x >= radius && x + kBlurRun - 1 + radius <= last_x) {  // nearly always for a whole warp at a time
      divide_run(run, line[radius], table[(radius + 1) * (radius + 1) + y]);
    } else {
      FASTINPAINT_UNROLL(1)
      for (int k = 0; k < kBlurRun; ++k) run[k] /= line[distance(x + k, last_x)];
    }
  }
};

// What read_tile fills source with: the grey image, zero outside the mask. A row's pixels lie one behind the
// other.
template <class Pixel, bool kMasked, int kChannels>
struct RowSource {
  const CannyJob& job;
  const Tile& tile;
  const Pixel* image;
  int64_t row_stride, plane;

  FASTINPAINT_HD RowSource(const CannyJob& job, const Tile& tile)
      : job(job),
        tile(tile),
        image(static_cast<const Pixel*>(job.image) + tile.image * job.image_strides[0]),
        row_stride(job.scales[tile.scale].row_step * job.image_strides[2]),
        plane(job.image_strides[1]) {}

  FASTINPAINT_HD float at(int64_t row, int y, int x) const {
    if (kMasked && !is_valid(job, tile, y, x)) return 0.0f;
    const Pixel* pixel = image + row + x;
    if constexpr (kChannels == 1)
      return float(pixel[0]);
    else
      return gray_of(float(pixel[0]), float(pixel[plane]), float(pixel[2 * plane]));
  }
};

// The same however the pixels lie, and for maps of any size.
template <class Pixel, bool kMasked>
struct AnySource {
  const CannyJob& job;
  const Tile& tile;
  static constexpr int64_t row_stride = 0;

  FASTINPAINT_HD float at(int64_t, int y, int x) const { return read_gray<Pixel, kMasked>(job, tile, y, x); }
};

// The mask: 1 where the image counts.
struct MaskSource {
  const CannyJob& job;
  const Tile& tile;
  static constexpr int64_t row_stride = 0;

  FASTINPAINT_HD float at(int64_t, int y, int x) const { return is_valid(job, tile, y, x) ? 1.0f : 0.0f; }
};

// Fills source around a tile, with zeros outside the edge map. Nine values of a thread are on their way at a
// time. kRadius 0: m.radius.
template <int kRadius, class Stored, class Source>
__device__ inline void read_tile(const Tile& tile, const TileMemory<Stored>& m, const Source& source) {
  constexpr int kRows = 3, kColumns = 3, kWarps = kThreads / 32;
  const int radius = kRadius > 0 ? kRadius : m.radius, height = kSmoothHeight + 2 * radius,
            width = kSmoothWidth + 2 * radius, stride = width | 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  FASTINPAINT_UNROLL(1)
  for (int first = 0; first < width; first += kColumns * 32) {
    const int left = tile.x0 - radius - 2 + first + lane;
    int y = tile.y0 - radius - 2 + warp;
    int64_t offset = y * source.row_stride;
    Stored* to = m.source + warp * stride + first + lane;
    FASTINPAINT_UNROLL(1)
    for (int top = warp; top < height; top += kRows * kWarps) {
      float values[kRows][kColumns];
      FASTINPAINT_UNROLL()
      for (int i = 0; i < kRows; ++i) {
        const bool is_inside = top + i * kWarps < height && unsigned(y) < unsigned(tile.height);
        FASTINPAINT_UNROLL()
        for (int j = 0; j < kColumns; ++j) {
          const int x = left + j * 32;
          values[i][j] = 0.0f;
          if (is_inside && unsigned(x) < unsigned(tile.width) && first + j * 32 + lane < width)
            values[i][j] = source.at(offset, y, x);
        }
        y += kWarps;
        offset += kWarps * source.row_stride;
      }
      FASTINPAINT_UNROLL()
      for (int i = 0; i < kRows; ++i) {
        FASTINPAINT_UNROLL()
        for (int j = 0; j < kColumns; ++j)
          if (top + i * kWarps < height && first + j * 32 + lane < width)
            to[i * kWarps * stride + j * 32] = values[i][j];
      }
      to += kRows * kWarps * stride;
    }
  }
}

// Fills source with the grey image.
template <class Pixel, bool kMasked, class Stored>
__device__ inline void read_image(const CannyJob& job, const Tile& tile, const TileMemory<Stored>& m) {
  const CannyScale& map = job.scales[tile.scale];
  const RowSource<Pixel, kMasked, 1> gray(job, tile);
  if (map.column_step != 1 || map.row_step == 0 || job.image_strides[3] != 1)
    read_tile<0>(tile, m, AnySource<Pixel, kMasked>{job, tile});
  else if (job.channels == 3)
    read_tile<0>(tile, m, RowSource<Pixel, kMasked, 3>(job, tile));
  else if (m.radius == 6)
    read_tile<6>(tile, m, gray);
  else
    read_tile<0>(tile, m, gray);
}

// A run of kBlurRun values of a line, blurred; kRadius 0: m.radius.
template <int kRadius, class ValueAt>
FASTINPAINT_HD void blur_line(const CannyJob& job, const ValueAt& value_at, double (&sum)[kBlurRun]) {
  if constexpr (kRadius > 0)
    blur_run_of<kRadius>(job.weights, value_at, sum);
  else
    blur_run(job.weights, job.radius, value_at, sum);
}

// Blurs source along H into column.
template <int kRadius, class Stored>
__device__ inline void blur_tile_down(const CannyJob& job, const TileMemory<Stored>& m) {
  const int radius = kRadius > 0 ? kRadius : m.radius, width = kSmoothWidth + 2 * radius, stride = width | 1;
  for (int i = threadIdx.x; i < kSmoothHeight / kBlurRun * width; i += kThreads) {
    const int group = i / width, x = i - group * width, row = group * kBlurRun;
    double sum[kBlurRun];
    blur_line<kRadius>(job, Line<Stored>{m.source + (row + radius) * stride + x, stride}, sum);
    FASTINPAINT_UNROLL()
    for (int k = 0; k < kBlurRun; ++k) m.column[(row + k) * stride + x] = float(sum[k]);
  }
}

// Blurs column along W and hands runs of values to `take`, with the place of the first in the smooth image.
template <int kRadius, class Stored, class Take>
__device__ inline void blur_tile_across(const CannyJob& job, const TileMemory<Stored>& m, const Take& take) {
  const int radius = kRadius > 0 ? kRadius : m.radius, stride = (kSmoothWidth + 2 * radius) | 1;
  for (int i = threadIdx.x; i < kSmoothHeight * kSmoothWidth / kBlurRun; i += kThreads) {
    const int row = i % kSmoothHeight, column = i / kSmoothHeight * kBlurRun;
    double sum[kBlurRun];
    blur_line<kRadius>(job, Line<Stored>{m.column + row * stride + column + radius, 1}, sum);
    take(row, column, sum);
  }
}

// The blurred source, run by run, to `take`.
template <int kRadius, class Stored, class Take>
__device__ inline void blur_tile(const CannyJob& job, const TileMemory<Stored>& m, const Take& take) {
  blur_tile_down<kRadius>(job, m);
  __syncthreads();
  blur_tile_across<kRadius>(job, m, take);
}

// The same; the radii of sigma 1, 1.5 and 2 are known to the compiler.
template <class Stored, class Take>
__device__ inline void blur_tile(const CannyJob& job, const TileMemory<Stored>& m, const Take& take) {
  constexpr bool kDoubles = sizeof(Stored) == sizeof(double);
  if (kDoubles && m.radius == 6)
    blur_tile<6>(job, m, take);
  else if (kDoubles && m.radius == 4)
    blur_tile<4>(job, m, take);
  else if (kDoubles && m.radius == 8)
    blur_tile<8>(job, m, take);
  else
    blur_tile<0>(job, m, take);
}

// Repeats the edge pixels of the smooth image just outside it, for the derivatives.
template <class Stored>
__device__ inline void repeat_border(const Tile& tile, const TileMemory<Stored>& m) {
  const int bottom = tile.y0 + kSmoothHeight - 2, right = tile.x0 + kSmoothWidth - 2;
  if (tile.y0 > 0 && tile.x0 > 0 && bottom <= tile.height && right <= tile.width) return;
  __syncthreads();
  static_assert(2 * (kSmoothWidth + kSmoothHeight) <= kThreads);
  const int top = tile.y0 - 2, left = tile.x0 - 2, i = threadIdx.x, side = i - 2 * kSmoothWidth;
  const int y = side >= 0 ? top + side % kSmoothHeight : i < kSmoothWidth ? -1 : tile.height;
  const int x = side < 0 ? left + i % kSmoothWidth : side < kSmoothHeight ? -1 : tile.width;
  const int row = y - top, column = x - left;
  const bool is_own =
      side < 0 || (side < 2 * kSmoothHeight && y >= 0 && y < tile.height);  // corners: the rows'
  if (is_own && row >= 0 && row < kSmoothHeight && column >= 0 && column < kSmoothWidth)
    m.smooth[row * kSmoothStride + column] =
        m.smooth[(clamp(y, tile.height) - top) * kSmoothStride + clamp(x, tile.width) - left];
}

// The smooth image of a tile, into m.smooth.
template <class Pixel, bool kMasked, class Stored>
__device__ inline void smooth_tile(const CannyJob& job, const Tile& tile, const TileMemory<Stored>& m) {
  const auto divide_by = [&](const auto& cover) {
    return [&](int row, int column, const double (&sum)[kBlurRun]) {
      float run[kBlurRun];
      FASTINPAINT_UNROLL()
      for (int k = 0; k < kBlurRun; ++k) run[k] = float(sum[k]);
      cover.divide(row, column, run);
      FASTINPAINT_UNROLL()
      for (int k = 0; k < kBlurRun; ++k) m.smooth[row * kSmoothStride + column + k] = run[k];
    };
  };
  if constexpr (kMasked) {
    read_tile<0>(tile, m, MaskSource{job, tile});
    __syncthreads();
    blur_tile(job, m, [&](int row, int column, const double (&sum)[kBlurRun]) {
      FASTINPAINT_UNROLL()
      for (int k = 0; k < kBlurRun; ++k)
        m.covered[row * kSmoothStride + column + k] = float(sum[k]) + kFloatEps;
    });
    read_image<Pixel, kMasked>(job, tile, m);
    __syncthreads();
    blur_tile(job, m, divide_by(Cover{0, 0, nullptr, m.covered}));
  } else if constexpr (sizeof(Stored) == sizeof(double)) {
    const int size = (m.radius + 1) * (m.radius + 2);
    if (int(threadIdx.x) < size) m.table[threadIdx.x] = job.cover_table[threadIdx.x];
    read_image<Pixel, kMasked>(job, tile, m);
    __syncthreads();
    blur_tile(job, m, divide_by(TableCover(tile, m.table, m.radius)));
  } else {
    const Cover cover = fill_cover(job, tile, m);
    read_image<Pixel, kMasked>(job, tile, m);
    __syncthreads();
    blur_tile(job, m, divide_by(cover));
  }
  repeat_border(tile, m);
}

// ---- Edges of a tile --------------------------------------------------------------------------------------

// Both derivatives of the smooth image at a pixel.
struct Gradient {
  float along_h, along_w;

  FASTINPAINT_HD explicit Gradient(const float* here) {
    const float *up = here - kSmoothStride, *down = here + kSmoothStride;
    along_h = sobel_sum(down[-1] - up[-1], down[0] - up[0], down[1] - up[1]);
    along_w = sobel_sum(up[1] - up[-1], here[1] - here[-1], down[1] - down[-1]);
  }
};

// Writes eight bytes, of which the first `count` lie inside the row.
__device__ inline void write_labels(unsigned char* to, uint64_t bytes, int count) {
  if (count >= kPixels && reinterpret_cast<uintptr_t>(to) % 8 == 0) {
    *reinterpret_cast<uint64_t*>(to) = bytes;
    return;
  }
  for (int k = 0; k < kPixels && k < count; ++k) to[k] = static_cast<unsigned char>(bytes >> (8 * k));
}

// The pixel of a tile at position `i` of its border: top row, bottom row, left column, right column.
FASTINPAINT_HD int border_pixel(int i) {
  if (i < 2 * kTileWidth) return i < kTileWidth ? i : (kTileHeight - 2) * kTileWidth + i;
  const int row = i - 2 * kTileWidth;
  return row < kTileHeight ? row * kTileWidth : (row - kTileHeight) * kTileWidth + kTileWidth - 1;
}

// Bits of a tile's row: pixel x is bit x. Memory is little-endian.
FASTINPAINT_HD uint64_t bits_of_row(const unsigned char* bits, int row) {
  return reinterpret_cast<const uint64_t*>(bits)[row];
}

__device__ inline unsigned without_highest(unsigned bits) {
  return bits & ~(1u << highest_bit(bits));
}

// Which of the eight pixels from (y, x) on have all their neighbours inside the image.
FASTINPAINT_HD unsigned inner_pixels(const Tile& tile, int y, int x) {
  const int count = tile.width - 1 - x;
  if (y == 0 || y + 1 >= tile.height || count <= 0) return 0;
  return (x == 0 ? 0xfe : 0xff) & (count >= kPixels ? 0xff : (1u << count) - 1);
}

// Weak and strong local maxima of the tile, as bits.
template <bool kMasked, class Stored>
__device__ inline void thin_tile(const CannyJob& job, const Tile& tile, const TileMemory<Stored>& m) {
  const int row = threadIdx.x / (kTileWidth / kPixels),
            column = threadIdx.x % (kTileWidth / kPixels) * kPixels;
  const int y = tile.y0 + row, x = tile.x0 + column;
  const float* smooth = m.smooth + (row + 2) * kSmoothStride + column + 2;
  float along_h[kPixels], along_w[kPixels];
  FASTINPAINT_UNROLL()
  for (int k = 0; k < kPixels; ++k) {
    const Gradient gradient(smooth + k);
    along_h[k] = gradient.along_h;
    along_w[k] = gradient.along_w;
  }
  float* magnitude = m.magnitude + (row + 1) * kMagnitudeStride + column + 1;
  FASTINPAINT_UNROLL()
  for (int k = 0; k < kPixels; ++k) magnitude[k] = gradient_magnitude(along_h[k], along_w[k]);
  constexpr int kAround = 2 * (kTileWidth + 2) + 2 * kTileHeight;
  static_assert(kAround <= kThreads);
  if (const int i = threadIdx.x; i < kAround) {
    const int side = i - 2 * (kTileWidth + 2);
    const int to_y = side >= 0 ? 1 + side % kTileHeight : i < kTileWidth + 2 ? 0 : kTileHeight + 1;
    const int to_x = side >= 0 ? side / kTileHeight * (kTileWidth + 1) : i % (kTileWidth + 2);
    const Gradient gradient(m.smooth + (to_y + 1) * kSmoothStride + to_x + 1);
    m.magnitude[to_y * kMagnitudeStride + to_x] = gradient_magnitude(gradient.along_h, gradient.along_w);
  }
  __syncthreads();
  unsigned candidates = 0, strong = 0, weak = 0, open = 0;
  FASTINPAINT_UNROLL()
  for (int k = 0; k < kPixels; ++k) {
    candidates |= unsigned(magnitude[k] >= job.low) << k;
    strong |= unsigned(magnitude[k] >= job.high) << k;
  }
  candidates &= inner_pixels(tile, y, x);
  if (candidates != 0) {
    FASTINPAINT_UNROLL()
    for (int k = 0; k < kPixels; ++k) {
      const Maximum maximum = probable_maximum(magnitude + k, kMagnitudeStride, along_h[k], along_w[k]);
      weak |= unsigned(maximum == Maximum::yes) << k;
      open |= unsigned(maximum == Maximum::open) << k;
    }
  }
  weak &= candidates;
  FASTINPAINT_UNROLL(1)
  for (unsigned rest = open & candidates; rest != 0; rest = without_highest(rest)) {
    const int k = highest_bit(rest);
    const Gradient gradient(smooth + k);
    if (is_maximum(magnitude + k, kMagnitudeStride, gradient.along_h, gradient.along_w)) weak |= 1u << k;
  }
  if (kMasked && job.mask != nullptr) {
    FASTINPAINT_UNROLL(1)
    for (unsigned rest = weak; rest != 0; rest = without_highest(rest)) {
      const int k = highest_bit(rest);
      if (!is_inside_mask(job, tile, y, x + k)) weak &= ~(1u << k);
    }
  }
  m.weak[threadIdx.x] = static_cast<unsigned char>(weak);
  m.strong[threadIdx.x] = static_cast<unsigned char>(strong & weak);
}

// Components of the weak pixels of a tile, their labels and nodes. Starts from the runs of each row.
template <class Stored>
__device__ inline void label_tile(const CannyJob& job, const Tile& tile, const TileMemory<Stored>& m) {
  const int row = threadIdx.x / (kTileWidth / kPixels),
            column = threadIdx.x % (kTileWidth / kPixels) * kPixels;
  const int first = threadIdx.x * kPixels;
  const uint64_t weak = bits_of_row(m.weak, row), above = row > 0 ? bits_of_row(m.weak, row - 1) : 0;
  const unsigned own = m.weak[threadIdx.x];
  for (unsigned rest = own; rest != 0; rest = without_highest(rest)) {
    const int k = highest_bit(rest);
    const uint64_t gaps = ~weak & ((uint64_t(1) << (column + k)) - 1);
    m.parents[first + k] = row * kTileWidth + (gaps == 0 ? 0 : highest_bit(gaps) + 1);
    m.nodes[first + k] = kClosed;
  }
  __syncthreads();

  // Once for every contact of two runs: where it starts, or where only corners touch.
  const uint64_t both = weak & above;
  const uint64_t straight = both & ~(both << 1), left = weak & ~above & above << 1 & ~(weak << 1),
                 right = weak & ~above & above >> 1 & ~(weak >> 1);
  FASTINPAINT_UNROLL(1)
  for (unsigned rest = own; rest != 0; rest = without_highest(rest)) {
    const int k = highest_bit(rest), pixel = first + k, x = column + k;
    const unsigned contacts =
        unsigned(left >> x & 1) | unsigned(straight >> x & 1) << 1 | unsigned(right >> x & 1) << 2;
    FASTINPAINT_UNROLL(1)
    for (int side = 0; side < 3; ++side)
      if (contacts >> side & 1) unite(TileParents{m.parents}, pixel, pixel - kTileWidth + side - 1);
    if (m.strong[threadIdx.x] >> k & 1) unite(TileParents{m.parents}, pixel, kStrong);
  }
  __syncthreads();

  // A component's node is the first of its pixels on the border.
  int border = -1, border_root = kStrong;
  if (int(threadIdx.x) < kBorder) {
    border = border_pixel(threadIdx.x);
    if (m.weak[border / kPixels] >> border % kPixels & 1)
      border_root = find_root(TileParents{m.parents}, border);
    if (border_root != kStrong) atomicMin(m.nodes + border_root, int(threadIdx.x));
  }
  __syncthreads();

  if (border_root != kStrong && m.nodes[border_root] == int(threadIdx.x)) {
    const int node = tile.number * kBorder + threadIdx.x;
    tile.parents(job)[node] = node;
  }
  uint64_t labels = 0;
  for (unsigned rest = own; rest != 0; rest = without_highest(rest)) {
    const int k = highest_bit(rest), root = find_root(TileParents{m.parents}, first + k);
    const int node = root == kStrong ? kClosed : m.nodes[root];
    const int label = root == kStrong ? 1 : node == kClosed ? 0 : kFirstOpen + node;
    labels |= uint64_t(label) << (8 * k);
  }
  const int y = tile.y0 + row, x = tile.x0 + column;
  if (y < tile.height && x < tile.width)
    write_labels(tile.labels(job) + int64_t(y) * tile.width + x, labels, tile.width - x);
}

// ---- Kernels: a block for each tile -----------------------------------------------------------------------

// The second bound of each kernel: blocks on a multiprocessor, as many as registers allow without spills.
template <class Pixel, bool kMasked, class Stored>
__global__ void __launch_bounds__(kThreads, kMasked ? 3 : 4)
    detect_edges(const __grid_constant__ CannyJob job) {
  const Tile tile(job, blockIdx.x);
  const TileMemory<Stored> m(block_memory(), job.radius, kHasCovered<kMasked, Stored>);
  smooth_tile<Pixel, kMasked>(job, tile, m);
  __syncthreads();
  let_next_kernel_start();
  thin_tile<kMasked>(job, tile, m);
  __syncthreads();
  label_tile(job, tile, m);
}

// The same for an image that blur_across has smoothed.
__global__ void __launch_bounds__(kThreads, 4) detect_smooth(const __grid_constant__ CannyJob job) {
  const Tile tile(job, blockIdx.x);
  const TileMemory<float> m(block_memory(), 0, false);
  const float* smooth = tile.part_of(job, job.smooth);
  for (int i = threadIdx.x; i < kSmoothHeight * kSmoothWidth; i += kThreads) {
    const int row = i / kSmoothWidth, column = i % kSmoothWidth;
    const int y = clamp(tile.y0 - 2 + row, tile.height), x = clamp(tile.x0 - 2 + column, tile.width);
    m.smooth[row * kSmoothStride + column] = smooth[int64_t(y) * tile.width + x];
  }
  __syncthreads();
  thin_tile<true>(job, tile, m);
  __syncthreads();
  label_tile(job, tile, m);
}

// Unites what touches across the tile's upper and left border. A pixel straight across stands for its
// neighbours in the row (column), for they hang together without this one.
__global__ void __launch_bounds__(kThreads) join_tiles(const __grid_constant__ CannyJob job) {
  const Tile tile(job, blockIdx.x);
  const int i = threadIdx.x;
  const bool on_top = i < kTileWidth;
  if (i >= kTileWidth + kTileHeight || (on_top ? tile.y0 : tile.x0) == 0) return;
  const int y = tile.y0 + (on_top ? 0 : i - kTileWidth), x = tile.x0 + (on_top ? i : 0);
  if (y >= tile.height || x >= tile.width) return;
  let_next_kernel_start();
  wait_for_kernel_before();
  const unsigned char* labels = tile.labels(job);
  const int across = job.scales[tile.scale].tiles_across;
  const auto label_at = [&](int at_y, int at_x) -> int {
    const bool inside = at_y >= 0 && at_x >= 0 && at_y < tile.height && at_x < tile.width;
    return inside ? labels[int64_t(at_y) * tile.width + at_x] : 0;
  };
  const auto node_of = [&](int label, int at_y, int at_x) {
    const int number = at_y / kTileHeight * across + at_x / kTileWidth;
    return label == 1 ? kStrong : number * kBorder + label - kFirstOpen;
  };
  const int label = label_at(y, x);
  if (label == 0) return;
  const int step_y = on_top ? 0 : 1, step_x = on_top ? 1 : 0, next_y = y - step_x, next_x = x - step_y;
  const int straight = label_at(next_y, next_x);
  for (int side = straight != 0 ? 0 : -1; side <= (straight != 0 ? 0 : 1); ++side) {
    const int at_y = next_y + side * step_y, at_x = next_x + side * step_x;
    const int other = label_at(at_y, at_x);
    if (other != 0 && (label != 1 || other != 1))
      unite(NodeParents{tile.parents(job)}, node_of(label, y, x), node_of(other, at_y, at_x));
  }
}

__global__ void __launch_bounds__(kThreads) resolve_edges(const __grid_constant__ CannyJob job) {
  const Tile tile(job, blockIdx.x);
  const int y = tile.y0 + threadIdx.x / (kTileWidth / kPixels);
  const int x = tile.x0 + threadIdx.x % (kTileWidth / kPixels) * kPixels;
  if (y >= tile.height || x >= tile.width) return;
  const int count = tile.width - x < kPixels ? tile.width - x : kPixels;
  unsigned char* place = tile.labels(job) + int64_t(y) * tile.width + x;
  wait_for_kernel_before();
  uint64_t labels = 0;
  if (count == kPixels && reinterpret_cast<uintptr_t>(place) % 8 == 0)
    labels = *reinterpret_cast<const uint64_t*>(place);
  else
    for (int k = 0; k < count; ++k) labels |= uint64_t(place[k]) << (8 * k);
  if ((labels & 0xfefefefefefefefe) == 0) return;
  uint64_t edges = 0;
  for (int k = 0; k < count; ++k) {
    const int label = int(labels >> (8 * k) & 0xff);
    const int node = tile.number * kBorder + label - kFirstOpen;
    const bool is_edge =
        label < kFirstOpen ? label != 0 : find_root(NodeParents{tile.parents(job)}, node) == kStrong;
    edges |= uint64_t(is_edge) << (8 * k);
  }
  write_labels(place, edges, count);
}

// ---- Wide Gaussians, through global memory ----------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    store_weights(double* to, int count, const __grid_constant__ WeightChunk chunk) {
  for (int i = threadIdx.x; i < count; i += kThreads) to[i] = chunk.values[i];
}

// A column of the source image or of its mask, from row y on.
template <class Pixel, bool kMasked, bool kCover>
struct SourceColumn {
  const CannyJob& job;
  const Tile& tile;
  int y, x;

  FASTINPAINT_HD double operator()(int i) const {
    return kCover ? read_cover<kMasked>(job, tile, y + i, x) : read_gray<Pixel, kMasked>(job, tile, y + i, x);
  }
};

template <class Pixel, bool kMasked>
__global__ void __launch_bounds__(kThreads, 2) blur_down(const __grid_constant__ CannyJob job) {
  const Tile tile(job, blockIdx.x);
  for (int i = threadIdx.x; i < kTileHeight * kTileWidth / kBlurRun; i += kThreads) {
    const int y = tile.y0 + i / kTileWidth * kBlurRun, x = tile.x0 + i % kTileWidth;
    if (y >= tile.height || x >= tile.width) continue;
    double image[kBlurRun], cover[kBlurRun];
    blur_run(job.far_weights, job.radius, SourceColumn<Pixel, kMasked, false>{job, tile, y, x}, image);
    blur_run(job.far_weights, job.radius, SourceColumn<Pixel, kMasked, true>{job, tile, y, x}, cover);
    for (int k = 0; k < kBlurRun && y + k < tile.height; ++k) {
      const int64_t to = int64_t(y + k) * tile.width + x;
      tile.part_of(job, job.columns)[to] = float(image[k]);
      tile.part_of(job, job.cover)[to] = float(cover[k]);
    }
  }
}

// A row of a map in global memory, zero outside.
struct MapRow {
  const float* row;
  int x, width;

  FASTINPAINT_HD double operator()(int i) const { return x + i >= 0 && x + i < width ? row[x + i] : 0.0f; }
};

__global__ void __launch_bounds__(kThreads, 2) blur_across(const __grid_constant__ CannyJob job) {
  const Tile tile(job, blockIdx.x);
  for (int i = threadIdx.x; i < kTileHeight * kTileWidth / kBlurRun; i += kThreads) {
    const int y = tile.y0 + i / (kTileWidth / kBlurRun), x = tile.x0 + i % (kTileWidth / kBlurRun) * kBlurRun;
    if (y >= tile.height || x >= tile.width) continue;
    const int64_t row = int64_t(y) * tile.width;
    double image[kBlurRun], cover[kBlurRun];
    blur_run(job.far_weights, job.radius, MapRow{tile.part_of(job, job.columns) + row, x, tile.width}, image);
    blur_run(job.far_weights, job.radius, MapRow{tile.part_of(job, job.cover) + row, x, tile.width}, cover);
    for (int k = 0; k < kBlurRun && x + k < tile.width; ++k)
      tile.part_of(job, job.smooth)[row + x + k] = float(image[k]) / (float(cover[k]) + kFloatEps);
  }
}

}  // namespace fastinpaint
