// Forward through time: a chunk's input products, then step by step the recurrent product and the tape.
#pragma once
#include "step.h"

namespace TT_ISA {

template <class T, bool PAIRS> struct Forward {
    const tt_forward_call& c;
    Step<T, PAIRS> s;
    const Panels<T> W, U;
    const long zx_row, z_row;
    T *bias, *zx, *z, *x_part;
    long* start;  // row of zx at which each step of the chunk begins

    Forward(const tt_forward_call& c, const Part& part, Arrivals* lines, T* const* steps)
        : c(c), s(c, part, lines, steps, c.matrices, nullptr, c.W->width), W(*c.W), U(*c.U), zx_row(c.nx * s.padded + 16), z_row(c.nh * s.padded + 16) {
        const long rows = s.part.rows.size(), most_rows = most(c.chunk, c.B);
        bias = take<T>(c.C * s.padded);
        zx = take<T>(most_rows * zx_row);
        z = take<T>(rows * z_row);
        x_part = s.part.row_groups > 1 ? take<T>(most_rows * W.K) : nullptr;
        start = take<long>(c.T + 1);
        std::memset(bias, 0, c.C * s.padded * sizeof(T));
        for (long k = 0; k < c.C; k++) std::memcpy(bias + k * s.padded, (const T*)c.bias + c.column_of[k] * c.H, c.H * sizeof(T));
    }

    void run() {
        for (long from = 0; from < c.T;) {
            const long to = s.clock.chunk_end(from);
            project(from, to);
            for (long step = from; step < to; step++) one(step, start[step - from]);
            from = to;
        }
    }

    // zx = bias + x W^T for the own rows and units of steps [from, to).
    void project(long from, long to) {
        enter_phase(s.part.thread, Phase::projection);
        const Range span = s.clock.span(from, to);
        const T* x = (const T*)c.x + span.from * W.K;
        long n = 0;
        for (long step = from; step < to; step++) {
            const long t = s.clock.time(step), rows = s.clock.running(t);
            if (s.part.row_groups == 1) {
                start[step - from] = c.offset[t] - span.from;
            } else {
                start[step - from] = n;
                std::memcpy(x_part + n * W.K, (const T*)c.x + s.clock.row(t) * W.K, rows * W.K * sizeof(T));
            }
            n += rows;
        }
        if (s.part.row_groups > 1) x = x_part;
        const Range u = s.part.units(c.H, s.panel);
        for (long k = 0; k < c.nx; k++)
            multiply<T, PAIRS>(W, k, u.from, u.to, n, {x, W.K, 1},
                               {zx + k * s.padded, zx_row, bias + k * s.padded, 0, 0}, false);
    }

    void one(long step, long zx_start) {
        const long t = s.clock.time(step), old_t = step ? s.clock.time(step - 1) : 0;
        const long rows = s.clock.running(t), continued = s.clock.continued(step);
        const long last = step + 1 < c.T ? least(rows, s.clock.running(s.clock.time(step + 1))) : 0;
        for (long stage = 0; stage < s.p.stages; stage++) {
            if (stage) s.barrier.wait();
            // Rows that begin at this step have their old state elsewhere.
            for (int fresh = 0; fresh < 2; fresh++) {
                const long m0 = fresh ? continued : 0, m1 = fresh ? rows : continued;
                if (m0 < m1) part_of_stage(stage, t, old_t, fresh, m0, m1, zx_start);
            }
        }
        if (last < rows) keep_finals(t, last, rows);
        s.barrier.wait();
    }

    void part_of_stage(long stage, long t, long old_t, bool fresh, long m0, long m1, long zx_start) {
        enter_phase(s.part.thread, Phase::step_forward);
        for (int i = 0; i < s.p.n_places; i++) {
            if (s.set_common(i, t, old_t, fresh)) continue;
            const long k = s.p.places[i].index;  // TT_Z
            if (k < c.h0 || k >= c.h0 + c.nh) s.frame.at[i] = {zx + zx_start * zx_row + k * s.padded, zx_row};
            else s.frame.at[i] = {z + (k - c.h0) * s.padded, z_row};
        }
        s.advance(m0);
        const long rows = m1 - m0;
        if (stage) {
            s.whole_rows(stage, rows);
            s.tape.stage(stage, s.frame, rows, s.part, s.panel);
            return;
        }
        if (!c.nh) {
            s.tape.stage(0, s.frame, rows, s.part, s.panel);
            return;
        }
        const long w = c.state_widths[0];
        const T* h = fresh ? (const T*)c.first[0] + s.part.rows.from * w : (const T*)c.sequences[0] + s.clock.row(old_t) * w;
        const Left<T> left = as_left<T, PAIRS>({(T*)h + m0 * w, w}, rows, w, s.words);
        // A block of units at a time, so that the tape finds the products in the first-level cache.
        const Range own = s.part.units(c.H, s.panel);
        const long block = most<long>(1, 1024 / (rows * s.panel)) * s.panel;
        for (long u = own.from; u < own.to; u += block) {
            const long past = least(u + block, own.to);
            enter_phase(s.part.thread, Phase::recurrence);
            for (long g = 0; g < c.nh; g++) {
                const long k = c.h0 + g;
                const bool sum = k < c.nx;
                multiply<T, PAIRS>(U, g, u, past, rows, left,
                                   {z + m0 * z_row + g * s.padded, z_row,
                                    sum ? zx + (zx_start + m0) * zx_row + k * s.padded : bias + k * s.padded,
                                    sum ? zx_row : 0, 0}, false);
            }
            enter_phase(s.part.thread, Phase::step_forward);
            for (long i = 0; i < s.p.n_sweeps; i++)
                if (s.p.sweeps[i].stage == 0 && s.p.sweeps[i].width == c.H)
                    s.tape.sweep(s.p.sweeps[i], s.frame, rows, u, past);
        }
        for (long i = 0; i < s.p.n_sweeps; i++)
            if (s.p.sweeps[i].stage == 0 && s.p.sweeps[i].width != c.H) {
                const Range v = s.part.units(s.p.sweeps[i].width, s.panel);
                s.tape.sweep(s.p.sweeps[i], s.frame, rows, v.from, v.to);
            }
    }

    // The own units of the states of rows [m0, m1), which end at step t.
    void keep_finals(long t, long m0, long m1) {
        for (long k = 0; k < c.S; k++) {
            const long w = c.state_widths[k];
            const Range u = s.part.units(w, s.panel);
            for (long m = m0; m < m1 && u.size() > 0; m++)
                std::memcpy((T*)c.finals[k] + (s.part.rows.from + m) * w + u.from,
                            (const T*)c.sequences[k] + (s.clock.row(t) + m) * w + u.from, u.size() * sizeof(T));
        }
    }
};

}  // namespace TT_ISA
