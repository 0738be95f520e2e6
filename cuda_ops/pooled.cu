// read_pooled: maxima or sums over windows that are never written: every tap reads the base or the patch.
#include "values.cuh"

struct Pooled {
    Reading reading;
    Frame frame;
    double divisor, start;       // of sums, from 0; without divisor maxima, from -inf
    int kernel[3], stride[3];
    int padding[3], dilation[3]; // taps in the padding are left out
    int window[3], unused;       // cells of the window
};

extern "C" __global__ void pooled(const Pooled p) {
    const int none = -1; // of axes that there are not
    for (unsigned query = blockIdx.y; query < p.frame.queries; query += gridDim.y) {
        const Reader reader(p.reading, query);
        fill<Unit, 1>(p.frame, query, [&](unsigned unit) {
            unsigned out[SPATIAL_AXES], channel;
            locate<SPATIAL_AXES>(p.frame, unit, out, channel);
            Computed result[LANES];
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane)
                result[lane] = (Computed)p.start;
            int taps = 1;
#pragma unroll
            for (int axis = 0; axis < SPATIAL_AXES; ++axis) taps *= p.kernel[axis];
            int at[SPATIAL_AXES] = {};
            for (int tap = 0; tap < taps; ++tap) {
                unsigned cell[SPATIAL_AXES];
                bool valid = true;
#pragma unroll
                for (int axis = 0; axis < SPATIAL_AXES; ++axis) {
                    const int where = (int)out[axis] * p.stride[axis] - p.padding[axis] + at[axis] * p.dilation[axis];
                    valid = valid && (unsigned)where < (unsigned)p.window[axis];
                    cell[axis] = (unsigned)where;
                }
                if (valid) {
                    const Pack pack = reader.read(p.reading, cell, channel);
#pragma unroll
                    for (int lane = 0; lane < LANES; ++lane) {
                        const Computed value = Value::load(pack.lanes[lane]);
                        if (p.divisor != 0.0)
                            result[lane] += value;
                        else if (value > result[lane] || value != value)
                            result[lane] = value;
                    }
                }
                int axis = SPATIAL_AXES - 1; // the next tap, the last axis fastest
                while (axis > none && ++at[axis] == p.kernel[axis]) at[axis--] = 0;
            }
            Pack pack;
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane)
                pack.lanes[lane] = Value::store(p.divisor != 0.0 ? result[lane] / (Computed)p.divisor : result[lane]);
            return pack.unit;
        });
    }
}
