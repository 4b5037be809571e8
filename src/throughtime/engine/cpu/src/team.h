// The threads of one call: how rows and units are shared out, how they wait for each other, and their scratch memory.
#pragma once
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

#include "interface.h"
#include "phases.h"
#include "scratch.h"
#include "simd.h"

namespace TT_ISA {

template <class T> T* take(long n) { return (T*)scratch_take(n * sizeof(T)); }

// One thread's arrivals, on a cache line of its own, and how many threads sleep until there are more.
struct alignas(64) Arrivals {
    int count, sleepers;
};

// A barrier that spins for some microseconds and then sleeps, so that a thread that waits for a core gets this one.
// Each thread counts its own arrivals, and waits until the others have counted as far.
struct Barrier {
    Arrivals* lines;
    int first, n, me;
    int count = 0;

    Barrier(Arrivals* lines, int first, int n, int me) : lines(lines), first(first), n(n), me(me) {}

    void wait() {
        if (n == 1) return;
        const int was = enter_phase(me, Phase::waiting);
        __atomic_store_n(&lines[me].count, ++count, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&lines[me].sleepers, __ATOMIC_SEQ_CST)) wake(lines[me]);
        for (int i = first; i < first + n; i++)
            if (i != me) wait_for(lines[i]);
        enter_phase(me, was);
    }

    void wait_for(Arrivals& a) {
        for (int spins = 0; spins < 1000; spins++) {
            if (__atomic_load_n(&a.count, __ATOMIC_ACQUIRE) >= count) return;
#if defined(__x86_64__)
            _mm_pause();
#endif
        }
        __atomic_add_fetch(&a.sleepers, 1, __ATOMIC_SEQ_CST);
        for (int seen; (seen = __atomic_load_n(&a.count, __ATOMIC_SEQ_CST)) < count;) sleep(a, seen);
        __atomic_sub_fetch(&a.sleepers, 1, __ATOMIC_SEQ_CST);
    }

#if defined(__linux__)
    // The kernel looks at the count once more: a thread that arrived in between is not slept through.
    static void wake(Arrivals& a) { syscall(SYS_futex, &a.count, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0); }
    static void sleep(Arrivals& a, int seen) {
        syscall(SYS_futex, &a.count, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
    }
#else
    static void wake(Arrivals&) {}
    static void sleep(Arrivals&, int) { sched_yield(); }
#endif
};

struct Range {
    long from, to;
    TT_INLINE long size() const { return to - from; }
};

// Shares n things out in groups of `unit`.
TT_INLINE Range share(long n, long unit, int i, int of) {
    const long groups = (n + unit - 1) / unit;
    return {least(n, groups * i / of * unit), least(n, groups * (i + 1) / of * unit)};
}

// A thread's part: a group of rows (sequences) and, within it, a range of units.
struct Part {
    int thread, threads, row_groups, columns;
    Range rows;
    int column;

    Part(const tt_forward_call& c, int thread, int threads, int row_groups)
        : thread(thread), threads(threads), row_groups(row_groups), columns(threads / row_groups),
          column(thread % columns) {
        const int group = thread / columns;
        rows = {bound(c, group), bound(c, group + 1)};
    }

    // Rows such that every group has about as many valid steps as the others.
    long bound(const tt_forward_call& c, int group) const {
        const long total = c.offset[c.T];
        if (group == 0) return 0;
        if (group >= row_groups) return c.B;
        if (total == c.T * c.B) return c.B * group / row_groups;
        long low = 0, high = c.B;
        while (low < high) {
            const long middle = (low + high) / 2;
            long steps = 0;
            for (long t = 0; t < c.T; t++) steps += least<long>(middle, c.offset[t + 1] - c.offset[t]);
            if (steps * row_groups < total * group) low = middle + 1;
            else high = middle;
        }
        return low;
    }

    Range units(long width, long panel) const { return share(width, panel, column, columns); }
};

// The order of the steps, and the rows of a part that are still running at each.
struct Clock {
    const tt_forward_call& c;
    Range rows;

    TT_INLINE long time(long step) const { return c.reverse ? c.T - 1 - step : step; }
    TT_INLINE long running(long t) const {
        const long n = c.offset[t + 1] - c.offset[t] - rows.from;
        return n < 0 ? 0 : least(n, rows.size());
    }
    // Rows that come from an earlier step; the others begin here.
    TT_INLINE long continued(long step) const {
        return step == 0 ? 0 : least(running(time(step)), running(time(step - 1)));
    }
    TT_INLINE long row(long t) const { return c.offset[t] + rows.from; }
    // Past the last step of the chunk that begins at `step`: about c.chunk rows over the whole batch.
    long chunk_end(long step) const {
        long n = 0, s = step;
        while (s < c.T && (s == step || n + c.offset[time(s) + 1] - c.offset[time(s)] <= c.chunk)) {
            n += c.offset[time(s) + 1] - c.offset[time(s)];
            s++;
        }
        return s;
    }
    // Where the rows of steps [from, to) stand.
    Range span(long from, long to) const {
        const long a = time(from), b = time(to - 1);
        return {c.offset[least(a, b)], c.offset[most(a, b) + 1]};
    }
};

}  // namespace TT_ISA
