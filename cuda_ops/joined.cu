// read_joined: the sum of one or two windows, then factor, shift and limits per channel; one launch.
#include "values.cuh"

struct Joined {
    Reading first, second; // second: without base and patch if there is none
    Frame frame;
    const void *scale, *shift; // [channels], or null
    double low, high;
};

extern "C" __global__ void joined(const Joined j) {
    const bool two = j.second.source.base || j.second.source.patch;
    const Stored *scale = (const Stored *)j.scale, *shift = (const Stored *)j.shift;
    for (unsigned query = blockIdx.y; query < j.frame.queries; query += gridDim.y) {
        const Reader first(j.first, query), second(j.second, query);
        fill<Unit, 2>(j.frame, query, [&](unsigned unit) {
            unsigned cell[SPATIAL_AXES], channel;
            locate<SPATIAL_AXES>(j.frame, unit, cell, channel);
            Pack pack = first.read(j.first, cell, channel), other;
            if (two) other = second.read(j.second, cell, channel);
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane) {
                Computed value = Value::load(pack.lanes[lane]);
                if (two) value = Value::load(Value::store(value + Value::load(other.lanes[lane])));
                if (scale) {
                    const unsigned c = channel * LANES + lane;
                    value = Value::load(Value::store(Value::load(shift[c]) + value * Value::load(scale[c])));
                }
                pack.lanes[lane] = Value::store(clamped(value, (Computed)j.low, (Computed)j.high));
            }
            return pack.unit;
        });
    }
}
