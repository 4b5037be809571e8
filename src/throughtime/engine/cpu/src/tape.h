// The tape interpreter: an operation at a time over tiles that stay in the first-level cache.
#pragma once
#include "interface.h"
#include "ops.h"
#include "team.h"

namespace TT_ISA {

constexpr int most_places = 160;

// All the values of a tape at one step: where row 0, unit 0 stands.
template <class T> struct Frame {
    Operand<T> at[most_places];
};

template <class T> struct Tape {
    static constexpr int tile = 2048 / sizeof(T);  // numbers of one temporary: 512 in float32
    const tt_program& p;
    T* temps;
    long fetch_rows = 0;  // how far the rows lie that the next step will read; 0: nothing is fetched ahead

    explicit Tape(const tt_program& p) : p(p), temps(take<T>((p.n_temps + 1) * tile)) {}

    // Runs one sweep over rows [0, rows) and units [from, to) of a frame.
    void sweep(const tt_sweep& s, const Frame<T>& frame, long rows, long from, long to) {
        if (rows <= 0 || from >= to) return;
        const int n = p.n_places;
        const long few = most<long>(tile / rows / 64 * 64, 64);
        const long wide = least(least<long>(few, tile), to - from);
        const long tall = most<long>(1, least(rows, tile / round_up(wide, lanes<T>)));
        Operand<T> at[most_places];
        for (long u = from; u < to; u += wide) {
            const int units = least(wide, to - u);
            for (int i = 0; i < n; i++) {
                if (p.places[i].kind == TT_TEMP) at[i] = {temps + p.places[i].index * tile, units};
                else at[i] = {frame.at[i].base + u, frame.at[i].row};
            }
            for (long m = 0; m < rows; m += tall) {
                const int r = least(tall, rows - m);
                if (fetch_rows) fetch(at, r, units);
                const tt_instruction* first = p.instructions + s.first;
                for (const tt_instruction* q = first; q < first + s.count; q++)
                    tile_functions<T>[q->code](at[q->d], at[q->a], at[q->b], at[q->c], r, units, (T)q->k0, (T)q->k1);
                for (int i = 0; i < n; i++)
                    if (p.places[i].kind != TT_TEMP) at[i].base += tall * at[i].row;
            }
        }
    }

    // Brings what the next step reads of this tile, and nobody has touched since the forward pass, nearer.
    void fetch(const Operand<T>* at, int rows, int units) const {
        for (int i = 0; i < p.n_places; i++) {
            const long kind = p.places[i].kind;
            if (at[i].row == 0 || (kind != TT_KEPT && kind != TT_DY && kind != TT_OLD)) continue;
            for (int m = 0; m < rows; m++) {
                const T* q = at[i].base + (m + fetch_rows) * at[i].row;
                for (int u = 0; u < units; u += 64 / sizeof(T)) __builtin_prefetch(q + u, 0, 2);
            }
        }
    }

    // All sweeps of a stage; widths are shared out by the part's panels.
    void stage(long stage, const Frame<T>& frame, long rows, const Part& part, long panel) {
        for (long i = 0; i < p.n_sweeps; i++)
            if (p.sweeps[i].stage == stage) {
                const Range u = part.units(p.sweeps[i].width, panel);
                sweep(p.sweeps[i], frame, rows, u.from, u.to);
            }
    }
};

// d[m, from..to) = mean over the `width` units of row m.
template <class T> void spread_mean(Operand<T> d, Operand<T> a, long rows, long width, Range units) {
    for (long m = 0; m < rows; m++) {
        const T* s = a.base + m * a.row;
        Vec<T> sum = {};
        long u = 0;
        for (; u + lanes<T> <= width; u += lanes<T>) sum = sum + load(s + u);
        if (u < width) sum = sum + load_part(s + u, width - u);
        T total = 0;
        for (int i = 0; i < lanes<T>; i++) total += sum[i];
        total /= width;
        for (long v = units.from; v < units.to; v++) d.base[m * d.row + v] = total;
    }
}

}  // namespace TT_ISA
