// What all kernels share: where a query's window lies in the base and its patch, and how threads share out the windows.
//
// Everything is counted in units: 1, 2, 4, 8 or 16 bytes, the widest access that all addresses and strides allow. Cells have
// up to three axes, the first of which varies slowest. Kernels take one struct by value, whose layout cuda.py packs.
#pragma once

// n / divisor for n < 2^31 (Granlund and Montgomery, PLDI 1994, figure 4.1, N = 32).
struct Divisor {
    unsigned magic, shift;
};

__device__ __forceinline__ unsigned quotient(unsigned n, const Divisor &by) {
    const unsigned high = (unsigned)(((unsigned long long)n * by.magic) >> 32);
    return (high + n) >> by.shift;
}

// A base with one patch per query. Window cells lie at `origins` [queries, 1 + axes] (base, first cell per axis) in the base;
// without origins query n reads row n, from cell 0 or, of results that are cropped, from at - (start * stride - shift).
// A patch without a base is the whole window.
struct Source {
    const void *base, *patch;           // without patch: the base alone
    const long long *origins, *offsets; // offsets [queries, axes]: the patch's first cell in window coordinates
    const long long *start, *at;        // [queries, axes]
    long long base_row, base_axis[3], base_channel;
    long long patch_row, patch_axis[3], patch_channel;
    long long stride[3], shift[3];
    unsigned patch_extent[3], unused;
};

// The result: [queries, *extent, units], a query every `row` and a cell every `cell` units.
struct Frame {
    void *out;
    long long row, cell;
    unsigned queries, units, total; // total: units per query
    unsigned extent[3];
    Divisor by_units, by_extent[3];
};

// The type of an access of so many bytes.
template <int BYTES> struct Bytes;
template <> struct Bytes<1> { typedef unsigned char Unit; };
template <> struct Bytes<2> { typedef unsigned short Unit; };
template <> struct Bytes<4> { typedef unsigned Unit; };
template <> struct Bytes<8> { typedef unsigned long long Unit; };
template <> struct Bytes<16> {
    struct alignas(16) Unit {
        unsigned parts[4];
    };
};

// One query's window in a source.
template <typename Unit, int AXES> struct Window {
    const Unit *base, *patch;
    int offset[AXES];

    __device__ __forceinline__ Window(const Source &s, unsigned query) {
        const long long *placed = s.origins ? s.origins + (long long)query * (AXES + 1) : nullptr;
        base = (const Unit *)s.base + (placed ? placed[0] : (long long)query) * s.base_row;
        patch = (const Unit *)s.patch + (long long)query * s.patch_row;
#pragma unroll
        for (int axis = 0; axis < AXES; ++axis) {
            const long long i = (long long)query * AXES + axis;
            long long first = placed ? placed[axis + 1] : 0;
            if (s.at) first = s.at[i] - (s.start[i] * s.stride[axis] - s.shift[axis]);
            base += first * s.base_axis[axis];
            offset[axis] = s.offsets ? (int)s.offsets[i] : 0;
        }
    }

    // Where the window's value at a cell is: in the patch if that covers the cell (`inside`), else in the base.
    __device__ __forceinline__ const Unit *find(const Source &s, const unsigned (&cell)[AXES], unsigned channel,
                                                bool &inside) const {
        inside = s.patch != nullptr;
        long long in_base = channel * s.base_channel, in_patch = channel * s.patch_channel;
#pragma unroll
        for (int axis = 0; axis < AXES; ++axis) {
            const int laid = (int)cell[axis] - offset[axis];
            inside = inside && (unsigned)laid < s.patch_extent[axis]; // negative ones are large
            in_base += (long long)cell[axis] * s.base_axis[axis];
            in_patch += (long long)laid * s.patch_axis[axis];
        }
        return inside ? patch + in_patch : base + in_base;
    }
};

// The cell and the channel of a unit of the result.
template <int AXES>
__device__ __forceinline__ void locate(const Frame &f, unsigned unit, unsigned (&cell)[AXES], unsigned &channel) {
    const unsigned index = quotient(unit, f.by_units);
    channel = unit - index * f.units;
    unsigned rest = index;
#pragma unroll
    for (int axis = AXES - 1; axis > 0; --axis) {
        const unsigned above = quotient(rest, f.by_extent[axis]);
        cell[axis] = rest - above * f.extent[axis];
        rest = above;
    }
    cell[0] = rest;
}

// Makes one query's units, this thread's share of them. ITEMS are made before the first is stored, so that as many loads are on
// the way at once. Blocks: x over the units of a query, y over queries.
template <typename Unit, int ITEMS, typename Make>
__device__ __forceinline__ void fill(const Frame &f, unsigned query, const Make &make) {
    const unsigned first = blockIdx.x * ITEMS * blockDim.x + threadIdx.x;
    Unit made[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
        if (first + i * blockDim.x < f.total) made[i] = make(first + i * blockDim.x);
    Unit *out = (Unit *)f.out + query * f.row;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const unsigned unit = first + i * blockDim.x;
        const unsigned index = quotient(unit, f.by_units);
        if (unit < f.total) out[index * f.cell + (unit - index * f.units)] = made[i];
    }
}
