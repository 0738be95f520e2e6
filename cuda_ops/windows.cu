// gather, superimpose, gather_superimpose and crop: windows are copied, with patches laid over them, unit by unit.
// Values are never looked at, so one kernel serves all types.
#include "windows.cuh"

struct Windows {
    Source source;
    Frame frame;
};

// UNIT_BYTES and SPATIAL_AXES are given at compile time: bytes per access, and spatial axes.
extern "C" __global__ void windows(const Windows w) {
    typedef Bytes<UNIT_BYTES>::Unit Unit;
    for (unsigned query = blockIdx.y; query < w.frame.queries; query += gridDim.y) {
        const Window<Unit, SPATIAL_AXES> window(w.source, query);
        fill<Unit, 4>(w.frame, query, [&](unsigned unit) {
            unsigned cell[SPATIAL_AXES], channel;
            locate<SPATIAL_AXES>(w.frame, unit, cell, channel);
            bool inside;
            return *window.find(w.source, cell, channel, inside);
        });
    }
}
