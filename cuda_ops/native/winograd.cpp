// Convolutions by minimal filtering (toom_cook.py) on windows of a base tensor with a patch laid over them.
//
// A worker takes a block of tiles at a time: it transforms their inputs, which it reads where they lie (base, patch, or
// zeros beyond the window), multiplies with the transformed weights, one product per point, and transforms back, adding
// bias and another tensor and clamping on the way out. Nothing but the block stands in memory between these steps.
#include <atomic>

#include "multiply.h"
#include "toom_cook.h"

struct Convolution {
  const float* base;       // [bases, base_height, base_width, channels]
  const float* patch;      // [count, patch_height, patch_width, channels]; null: nothing lies over the windows
  const int64_t* origins;  // [count, 3]: base, row, column; null: window i is the whole of base i
  const int64_t* offsets;  // [count, 2]: where the patch begins in the window
  const float* weights;    // [points, panels, channels, PANEL]
  const float* bias;       // [filters]; null: none
  const float* other;      // [count, out_height, out_width, filters], added; null: none
  float* out;              // the same shape
  float* scratch;          // [workers, scratch_size]
  int64_t count, bases, base_height, base_width, channels, patch_height, patch_width;
  int64_t height, width;  // of the windows
  int64_t top, left;      // zeros before a window's first row and column
  int64_t out_height, out_width, filters, block, workers;
  float low, high;  // what the results are clamped to
};

// torch_parallel_for of libtorch's stable C interface.
typedef void (*Part)(int64_t, int64_t, void*);
typedef int (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Part, void*);

constexpr int64_t SKEW = 16;  // floats between rows, so that they don't share cache sets

static int64_t panels_of(const Convolution& job) { return (job.filters + PANEL - 1) / PANEL; }

// out[i] = sum of t[i][j] * in[j]; zeros and ones cost nothing, for t is known to the compiler.
template <int O, int I>
static inline void transform(const float (&t)[O][I], const Vector* in, Vector* out, int step) {
#pragma GCC unroll 9
  for (int i = 0; i < O; i++) {
    Vector sum = Vector{};
    bool first = true;
#pragma GCC unroll 9
    for (int j = 0; j < I; j++) {
      const float f = t[i][j];
      if (f == 0) continue;
      const Vector x = in[j];
      if (first)
        sum = f == 1 ? x : f == -1 ? -x : f * x;
      else
        sum = f == 1 ? sum + x : f == -1 ? sum - x : sum + f * x;
      first = false;
    }
    out[i * step] = sum;
  }
}

template <class H, class W>
struct Kernel {
  static constexpr int POINTS = H::n * W::n;

  const Convolution& job;
  const int64_t rows = (job.out_height + H::m - 1) / H::m, columns = (job.out_width + W::m - 1) / W::m;
  const int64_t panels = panels_of(job), lda = job.channels + SKEW, ldo = panels * PANEL + SKEW;

  static int64_t scratch_size(const Convolution& job) {
    return job.channels + POINTS * job.block * (job.channels + SKEW + panels_of(job) * PANEL + SKEW) + WIDTH;
  }

  struct Tile {
    int64_t query, row, column;
  };
  Tile tile(int64_t i) const { return {i / columns / rows, i / columns % rows * H::m, i % columns * W::m}; }

  const float* cell(int64_t query, int64_t row, int64_t column, const float* zeros) const {
    if (row < 0 || column < 0 || row >= job.height || column >= job.width) return zeros;
    if (job.patch) {
      const int64_t r = row - job.offsets[2 * query], c = column - job.offsets[2 * query + 1];
      if (r >= 0 && c >= 0 && r < job.patch_height && c < job.patch_width)
        return job.patch + ((query * job.patch_height + r) * job.patch_width + c) * job.channels;
    }
    int64_t base = query;
    if (job.origins) {
      base = job.origins[3 * query];
      row += job.origins[3 * query + 1];
      column += job.origins[3 * query + 2];
    }
    return job.base + ((base * job.base_height + row) * job.base_width + column) * job.channels;
  }

  void read(const Tile& at, const float* zeros, float* to) const {
    const float* cells[H::n][W::n];
    for (int i = 0; i < H::n; i++)
      for (int j = 0; j < W::n; j++)
        cells[i][j] = cell(at.query, at.row * H::s + i - job.top, at.column * W::s + j - job.left, zeros);
    const int64_t point = job.block * lda;
    for (int64_t next = 0; next < job.channels; next += WIDTH) {
      const int64_t c = std::min(next, job.channels - WIDTH);  // the last vector overlaps the one before
      Vector half[H::n][W::n];
#pragma GCC unroll 9
      for (int j = 0; j < W::n; j++) {
        Vector column[H::n];
#pragma GCC unroll 9
        for (int i = 0; i < H::n; i++) column[i] = load(cells[i][j] + c);
        transform(H::B, column, &half[0][j], W::n);
      }
#pragma GCC unroll 9
      for (int i = 0; i < H::n; i++) {
        Vector row[W::n];
        transform(W::B, half[i], row, 1);
#pragma GCC unroll 9
        for (int j = 0; j < W::n; j++) store(to + (i * W::n + j) * point + c, row[j]);
      }
    }
  }

  void write(const Tile& at, const float* from) const {
    const int64_t point = job.block * ldo;
    const int64_t height = std::min<int64_t>(H::m, job.out_height - at.row);
    const int64_t width = std::min<int64_t>(W::m, job.out_width - at.column);
    const int64_t first = ((at.query * job.out_height + at.row) * job.out_width + at.column) * job.filters;
    const Vector low = Vector{} + job.low, high = Vector{} + job.high;
    for (int64_t next = 0; next < job.filters; next += WIDTH) {
      const int64_t k = std::min(next, job.filters - WIDTH);
      Vector half[H::m][W::n], result[H::m][W::m];
#pragma GCC unroll 9
      for (int j = 0; j < W::n; j++) {
        Vector column[H::n];
#pragma GCC unroll 9
        for (int i = 0; i < H::n; i++) column[i] = load(from + (i * W::n + j) * point + k);
        transform(H::A, column, &half[0][j], W::n);
      }
#pragma GCC unroll 9
      for (int i = 0; i < H::m; i++) transform(W::A, half[i], result[i], 1);
      const Vector bias = job.bias ? load(job.bias + k) : Vector{};
      for (int i = 0; i < height; i++)
        for (int j = 0; j < width; j++) {
          const int64_t where = first + (i * job.out_width + j) * job.filters + k;
          Vector value = result[i][j] + bias;
          if (job.other) value += load(job.other + where);
          value = value < low ? low : value;
          store(job.out + where, value > high ? high : value);
        }
    }
  }

  // True where a product takes its rows straight from the base: one cell each, whole windows without a patch.
  bool in_place() const {
    return POINTS == 1 && H::s == 1 && W::s == 1 && !job.patch && !job.origins && !job.top && !job.left &&
           job.height == job.base_height && job.width == job.base_width && job.channels % 1024 != 0;  // else all rows share sets of the cache
  }

  void work(std::atomic<int64_t>& next, float* scratch) const {
    const int64_t tiles = job.count * rows * columns;
    float *zeros = scratch, *inputs = zeros + job.channels, *products = inputs + POINTS * job.block * lda;
    std::fill(zeros, inputs, 0.0f);
    for (int64_t first; (first = next.fetch_add(job.block)) < tiles;) {
      const int64_t here = std::min(job.block, tiles - first);
      if (in_place()) {  // cells are rows already
        multiply(here, job.base + first * job.channels, job.channels, job.weights, panels, job.channels, products, ldo);
        for (int64_t i = 0; i < here; i++) write(tile(first + i), products + i * ldo);
        continue;
      }
      for (int64_t i = 0; i < here; i++) read(tile(first + i), zeros, inputs + i * lda);
      for (int64_t p = 0; p < POINTS; p++)
        multiply(here, inputs + p * job.block * lda, lda, job.weights + p * panels * job.channels * PANEL, panels,
                 job.channels, products + p * job.block * ldo, ldo);
      for (int64_t i = 0; i < here; i++) write(tile(first + i), products + i * ldo);
    }
  }

  struct Shared {
    const Kernel* kernel;
    std::atomic<int64_t> next;
  };

  static void part(int64_t worker, int64_t end, void* context) {
    Shared* shared = (Shared*)context;
    const Convolution& job = shared->kernel->job;
    for (; worker < end; worker++) shared->kernel->work(shared->next, job.scratch + worker * scratch_size(job));
  }

  void run(ParallelFor parallel) const {
    Shared shared{this, {0}};
    if (job.workers > 1)
      parallel(0, job.workers, 1, part, &shared);
    else
      part(0, 1, &shared);
  }
};

// True if every window lies in its base.
static bool inside(const Convolution& job) {
  if (!job.origins) return job.count <= job.bases && job.height <= job.base_height && job.width <= job.base_width;
  for (int64_t i = 0; i < job.count; i++) {
    const int64_t *origin = job.origins + 3 * i, row = origin[1], column = origin[2];
    if (origin[0] < 0 || origin[0] >= job.bases || row < 0 || row + job.height > job.base_height || column < 0 ||
        column + job.width > job.base_width)
      return false;
  }
  return true;
}

extern "C" {

// Floats of scratch that one worker needs; -1 for an unknown tile.
int64_t kcompile_winograd_scratch(int tile, const Convolution* job) {
#define CASE(i, mh, rh, sh, mw, rw, sw) \
  if (tile == i) return Kernel<Axis<mh, rh, sh>, Axis<mw, rw, sw>>::scratch_size(*job);
  TILES(CASE)
#undef CASE
  return -1;
}

// 0, or 1 where a window doesn't lie in its base, 2 for an unknown tile.
int kcompile_winograd(int tile, const Convolution* job, ParallelFor parallel) {
  if (!inside(*job)) return 1;
#define CASE(i, mh, rh, sh, mw, rw, sw) \
  if (tile == i) return Kernel<Axis<mh, rh, sh>, Axis<mw, rw, sw>>{*job}.run(parallel), 0;
  TILES(CASE)
#undef CASE
  return 2;
}
}
