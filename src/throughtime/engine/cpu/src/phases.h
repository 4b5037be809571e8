// Where the time of a call goes, by phase: counted only in a build with -DTHROUGHTIME_PHASES=ON, and else not there.
#pragma once
#include <cstdint>

struct Phase {
    enum Name {
        outside, rest, projection, recurrence, step_forward, step_backward, state_gradient, weight_gradient, sums,
        input_gradient, waiting, count
    };
};

#ifdef TT_PHASES
#include <x86intrin.h>

// Ticks of a thread's phases. It is in one phase at a time: what it enters ends what it was in.
struct alignas(64) PhaseClock {
    int64_t ticks[Phase::count];
    int64_t since;
    int now;
};
extern PhaseClock phase_clocks[64];

inline int enter_phase(int thread, int phase) {
    PhaseClock& c = phase_clocks[thread & 63];
    const int64_t t = __rdtsc();
    const int before = c.now;
    c.ticks[before] += t - c.since;
    c.since = t;
    c.now = phase;
    return before;
}
#else
inline int enter_phase(int, int) { return 0; }
#endif
