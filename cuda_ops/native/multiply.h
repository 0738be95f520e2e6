// out [rows, K] = a [rows, C] * b [C, K] for one panel of columns, all sums in registers.
#pragma once
#include "simd.h"

constexpr int PANEL = 16;  // columns that weights are packed by: [K / PANEL, C, PANEL]

// `R` rows, `V` vectors of columns; vectors of further panels stand `next` floats behind.
template <int R, int V>
static inline void block(const float* __restrict a, int64_t lda, const float* __restrict b, int64_t next, int64_t c,
                         float* __restrict out, int64_t ldo) {
  Vector sums[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) sums[i][j] = Vector{};
  for (int64_t k = 0; k < c; k++) {
    Vector columns[V];
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) columns[j] = load(b + k * PANEL + (j * WIDTH / PANEL) * next + j * WIDTH % PANEL);
#pragma GCC unroll 16
    for (int i = 0; i < R; i++) {
      const float factor = a[i * lda + k];
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) sums[i][j] += factor * columns[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 4
    for (int j = 0; j < V; j++) store(out + i * ldo + j * WIDTH, sums[i][j]);
}

template <int R, int V>
static void rest(int64_t rows, const float* a, int64_t lda, const float* b, int64_t next, int64_t c, float* out,
                 int64_t ldo) {
  if constexpr (R > 0) {
    if (rows == R)
      block<R, V>(a, lda, b, next, c, out, ldo);
    else
      rest<R - 1, V>(rows, a, lda, b, next, c, out, ldo);
  }
}

template <int V>
static void panel(int64_t rows, const float* a, int64_t lda, const float* b, int64_t next, int64_t c, float* out,
                  int64_t ldo) {
  for (; rows >= ROWS; rows -= ROWS, a += ROWS * lda, out += ROWS * ldo)
    block<ROWS, V>(a, lda, b, next, c, out, ldo);
  rest<ROWS - 1, V>(rows, a, lda, b, next, c, out, ldo);
}

// All panels: b is [panels, C, PANEL], rows of `out` hold panels * PANEL values.
static void multiply(int64_t rows, const float* a, int64_t lda, const float* b, int64_t panels, int64_t c, float* out,
                     int64_t ldo) {
  constexpr int LAST = PANEL / WIDTH, AT_ONCE = VECTORS * WIDTH / PANEL;
  int64_t p = 0;
  for (; p + AT_ONCE <= panels; p += AT_ONCE)
    panel<VECTORS>(rows, a, lda, b + p * c * PANEL, c * PANEL, c, out + p * PANEL, ldo);
  for (; p < panels; p++) panel<LAST>(rows, a, lda, b + p * c * PANEL, c * PANEL, c, out + p * PANEL, ldo);
}
