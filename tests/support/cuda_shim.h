// Lets g++ compile the CUDA C kernels: one thread after another, so for kernels without barriers and shuffles.
#pragma once
#include <cmath>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
static Dim gridDim, blockDim, blockIdx, threadIdx;

template <typename Argument>
void run(void (*kernel)(Argument), unsigned blocks_x, unsigned blocks_y, unsigned threads, const void *bytes, long size) {
    static_assert(alignof(Argument) <= 8, "ctypes aligns to 8 bytes");
    if (size != (long)sizeof(Argument)) throw "the struct's size is another one in Python";
    Argument argument;
    memcpy(&argument, bytes, sizeof argument);
    gridDim = {blocks_x, blocks_y, 1};
    blockDim = {threads, 1, 1};
    for (blockIdx.y = 0; blockIdx.y < blocks_y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < blocks_x; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel(argument);
}
