// read_mean: means over whole maps, of a base and what patches change: the base's sum plus the differences inside the patches.
#include "values.cuh"

struct Mean {
    Reading reading;
    Frame frame;       // [queries, 1, …, channels]
    const void *sums;  // of the bases, [bases, channels] of Computed, or null: then every cell is read
    int window[3], count;
};

extern "C" __global__ void mean(const Mean m) {
    const Source &s = m.reading.source;
    for (unsigned query = blockIdx.y; query < m.frame.queries; query += gridDim.y) {
        const Reader reader(m.reading, query);
        int low[SPATIAL_AXES], size[SPATIAL_AXES], cells = 1;
#pragma unroll
        for (int axis = 0; axis < SPATIAL_AXES; ++axis) {
            const int from = reader.window.offset[axis], to = from + (int)s.patch_extent[axis];
            low[axis] = m.sums && from > 0 ? from : 0;
            const int high = m.sums && to < m.window[axis] ? to : m.window[axis];
            size[axis] = high > low[axis] ? high - low[axis] : 0;
            cells *= size[axis];
        }
        fill<Unit, 1>(m.frame, query, [&](unsigned channel) {
            const Computed *sums = (const Computed *)m.sums;
            Computed total[LANES];
            const long long row = s.origins ? s.origins[(long long)query * (SPATIAL_AXES + 1)] : (long long)query;
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane)
                total[lane] = sums ? sums[(row * m.frame.units + channel) * LANES + lane] : (Computed)0;
            for (int index = 0; index < cells; ++index) {
                unsigned cell[SPATIAL_AXES];
                long long in_base = channel * s.base_channel;
                int rest = index;
#pragma unroll
                for (int axis = SPATIAL_AXES - 1; axis >= 0; --axis) {
                    cell[axis] = (unsigned)(low[axis] + rest % size[axis]);
                    rest /= size[axis];
                    in_base += (long long)cell[axis] * s.base_axis[axis];
                }
                const Pack pack = reader.read(m.reading, cell, channel);
                Pack old;
                if (sums) old.unit = reader.window.base[in_base];
#pragma unroll
                for (int lane = 0; lane < LANES; ++lane) {
                    const Computed value = Value::load(pack.lanes[lane]);
                    total[lane] += sums ? value - Value::load(old.lanes[lane]) : value;
                }
            }
            Pack pack;
#pragma unroll
            for (int lane = 0; lane < LANES; ++lane) pack.lanes[lane] = Value::store(total[lane] / (Computed)m.count);
            return pack.unit;
        });
    }
}
