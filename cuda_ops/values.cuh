// Arithmetic on values, for kernels that do more than copy. VALUE_TYPE, UNIT_BYTES and SPATIAL_AXES are given at compile time.
#pragma once
#include "windows.cuh"

struct Float32 {
    typedef float Stored;
    typedef float Computed;
    static __device__ __forceinline__ float load(float value) { return value; }
    static __device__ __forceinline__ float store(float value) { return value; }
};

struct Float64 {
    typedef double Stored;
    typedef double Computed;
    static __device__ __forceinline__ double load(double value) { return value; }
    static __device__ __forceinline__ double store(double value) { return value; }
};

// Half precision is computed in float and rounded to the nearest, ties to even, as PyTorch does.
struct BFloat16 {
    typedef unsigned short Stored;
    typedef float Computed;
    static __device__ __forceinline__ float load(unsigned short value) {
        union {
            unsigned bits;
            float value;
        } wide = {(unsigned)value << 16};
        return wide.value;
    }
    static __device__ __forceinline__ unsigned short store(float value) {
        union {
            float value;
            unsigned bits;
        } wide = {value};
        if (value != value) return 0x7fc0;
        return (unsigned short)((wide.bits + 0x7fff + ((wide.bits >> 16) & 1)) >> 16);
    }
};

struct Float16 {
    typedef unsigned short Stored;
    typedef float Computed;
#ifdef __CUDACC__
    static __device__ __forceinline__ float load(unsigned short value) {
        float wide;
        asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
        return wide;
    }
    static __device__ __forceinline__ unsigned short store(float value) {
        unsigned short narrow;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
        return narrow;
    }
#else // the tests' g++
    static inline float load(unsigned short value) {
        union {
            unsigned short bits;
            _Float16 value;
        } narrow = {value};
        return (float)narrow.value;
    }
    static inline unsigned short store(float value) {
        union {
            _Float16 value;
            unsigned short bits;
        } narrow = {(_Float16)value};
        return narrow.bits;
    }
#endif
};

typedef VALUE_TYPE Value;
typedef Value::Stored Stored;
typedef Value::Computed Computed;
typedef Bytes<UNIT_BYTES>::Unit Unit;
constexpr int LANES = UNIT_BYTES / sizeof(Stored);

// As many values as one access moves.
union Pack {
    Unit unit;
    Stored lanes[LANES];
};

// NaN stays NaN.
__device__ __forceinline__ Computed clamped(Computed value, Computed low, Computed high) {
    return value < low ? low : (value > high ? high : value);
}

// value + bias, rounded, and clamped to low … high: what ends a convolution.
struct Epilogue {
    const void *bias; // [channels], or null
    double low, high;
    int active, unused;
};

// A source whose patches are still without their convolution's bias and activation.
struct Reading {
    Source source;
    Epilogue epilogue;
};

// One query's window in such a source.
struct Reader {
    Window<Unit, SPATIAL_AXES> window;

    __device__ __forceinline__ Reader(const Reading &r, unsigned query) : window(r.source, query) {}

    __device__ __forceinline__ Pack read(const Reading &r, const unsigned (&cell)[SPATIAL_AXES], unsigned channel) const {
        bool inside;
        Pack pack;
        pack.unit = *window.find(r.source, cell, channel, inside);
        if (!inside || !r.epilogue.active) return pack;
        const Stored *bias = (const Stored *)r.epilogue.bias;
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
            Computed value = Value::load(pack.lanes[lane]);
            if (bias) value = Value::load(Value::store(value + Value::load(bias[channel * LANES + lane])));
            pack.lanes[lane] = Value::store(clamped(value, (Computed)r.epilogue.low, (Computed)r.epilogue.high));
        }
        return pack;
    }
};
