// read_linear: what patches change of a linear layer's results. Queries read the weights of the cells that their patches
// cover, and no others; sums over a part of the channels each go to partial results that are summed up afterwards.
#include "values.cuh"

struct Linear {
    Reading reading;    // counted in single values
    const void *weight; // [cells, channels, features]
    void *out;          // [queries, parts, features] of Computed
    unsigned queries, parts, share, channels; // a part has `share` channels, the last one fewer
    unsigned units, unused;                   // features, in accesses
    int window[3], unused_too;
};

extern "C" __global__ void linear(const Linear l) {
    const Source &s = l.reading.source;
    const unsigned unit = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned long long jobs = (unsigned long long)l.queries * l.parts;
    unsigned cells = 1;
#pragma unroll
    for (int axis = 0; axis < SPATIAL_AXES; ++axis) cells *= s.patch_extent[axis];
    for (unsigned long long job = blockIdx.y; unit < l.units && job < jobs; job += gridDim.y) {
        const unsigned query = (unsigned)(job / l.parts), first = (unsigned)(job % l.parts) * l.share;
        const unsigned last = first + l.share < l.channels ? first + l.share : l.channels;
        const Window<Stored, SPATIAL_AXES> window(s, query);
        Computed sum[LANES] = {};
        for (unsigned index = 0; index < cells; ++index) {
            unsigned rest = index;
            long long in_patch = 0, in_base = 0, line = 0, step = 1;
            bool inside = true;
#pragma unroll
            for (int axis = SPATIAL_AXES - 1; axis >= 0; --axis) {
                const int laid = (int)(rest % s.patch_extent[axis]), cell = laid + window.offset[axis];
                rest /= s.patch_extent[axis];
                inside = inside && (unsigned)cell < (unsigned)l.window[axis];
                in_patch += (long long)laid * s.patch_axis[axis];
                in_base += (long long)cell * s.base_axis[axis];
                line += cell * step;
                step *= l.window[axis];
            }
            if (!inside) continue;
            const Unit *weight = (const Unit *)l.weight + (line * l.channels + first) * l.units + unit;
            for (unsigned channel = first; channel < last; ++channel, weight += l.units) {
                Computed value = Value::load(window.patch[in_patch + channel * s.patch_channel]);
                if (l.reading.epilogue.active) {
                    const Epilogue &e = l.reading.epilogue;
                    const Stored *bias = (const Stored *)e.bias;
                    if (bias) value = Value::load(Value::store(value + Value::load(bias[channel])));
                    value = Value::load(Value::store(clamped(value, (Computed)e.low, (Computed)e.high)));
                }
                const Computed change = value - Value::load(window.base[in_base + channel * s.base_channel]);
                Pack factors;
                factors.unit = *weight;
#pragma unroll
                for (int lane = 0; lane < LANES; ++lane) sum[lane] += change * Value::load(factors.lanes[lane]);
            }
        }
        Computed *out = (Computed *)l.out + (job * l.units + unit) * LANES;
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) out[lane] = sum[lane];
    }
}
