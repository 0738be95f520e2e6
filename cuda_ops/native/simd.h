// Vectors of floats, as wide as the processor's registers, by the compilers' vector extensions.
#pragma once
#include <algorithm>
#include <cstdint>

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
constexpr int ROWS = 12;  // rows of the multiply's block: 24 of 32 registers hold sums
constexpr int VECTORS = 2;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
constexpr int ROWS = 6;  // 12 of 16 registers
constexpr int VECTORS = 2;
#else
constexpr int WIDTH = 4;
constexpr int ROWS = 6;
constexpr int VECTORS = 4;
#endif

typedef float Vector __attribute__((vector_size(WIDTH * 4), aligned(4)));

static inline Vector load(const float* from) { return *(const Vector*)from; }
static inline void store(float* to, Vector value) { *(Vector*)to = value; }
