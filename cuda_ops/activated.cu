// read_activated: windows are copied, and patches laid over them after their bias and activation.
#include "values.cuh"

struct Activated {
    Reading reading;
    Frame frame;
};

extern "C" __global__ void activated(const Activated a) {
    for (unsigned query = blockIdx.y; query < a.frame.queries; query += gridDim.y) {
        const Reader reader(a.reading, query);
        fill<Unit, 4>(a.frame, query, [&](unsigned unit) {
            unsigned cell[SPATIAL_AXES], channel;
            locate<SPATIAL_AXES>(a.frame, unit, cell, channel);
            return reader.read(a.reading, cell, channel).unit;
        });
    }
}
