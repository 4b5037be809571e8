// What the forward and the backward walk share: where the values of a step stand, and products inside a step.
#pragma once
#include "packing.h"
#include "tape.h"

namespace TT_ISA {

// Room for what lives for one step or one chunk: one array for each width, `rows` rows.
template <class T> T** take_rows(const int64_t* widths, long n, long rows) {
    T** all = take<T*>(n + 1);
    for (long i = 0; i < n; i++) all[i] = take<T>(rows * round_up(widths[i], lanes<T>));
    return all;
}

// Numbers as the left side of a product: as they are, or as pairs in bf16 written to `buffer`.
template <class T, bool PAIRS> Left<T> as_left(Operand<T> a, long rows, long width, T* buffer) {
    if constexpr (!PAIRS) return {a.base, a.row, 1};
    const long words = (width + 1) / 2;
    for (long m = 0; m < rows; m++) {
        const T* s = a.base + m * a.row;
        T* d = buffer + m * words;
        long u = 0;
#if TT_BYTES == 64 && defined(__AVX512BF16__)
        for (; u + 32 <= width; u += 32)
            store(d + u / 2, (Vec<T>)_mm512_cvtne2ps_pbh((__m512)load(s + u + 16), (__m512)load(s + u)));
#endif
        for (; u < width; u += 2) {
            const uint32_t both = to_bf16(s[u]) | (u + 1 < width ? to_bf16(s[u + 1]) : 0) << 16;
            std::memcpy(d + u / 2, &both, 4);
        }
    }
    return {buffer, words, 1};
}

template <class T, bool PAIRS> struct Step {
    const tt_forward_call& c;
    const tt_program& p;
    const Part part;
    const Clock clock;
    const long padded;  // H, rounded up to whole vectors
    const long panel;
    Barrier barrier;  // of the threads that share these rows
    Tape<T> tape;
    Frame<T> frame;
    T* const* steps;  // what lives for one step, for the whole batch
    T* words;         // a left side in bf16
    const tt_panels *matrices, *turned;

    Step(const tt_forward_call& c, const Part& part, Arrivals* lines, T* const* steps, const tt_panels* matrices,
         const tt_panels* turned, long panel)
        : c(c), p(*c.program), part(part), clock{c, part.rows}, padded(round_up(c.H, lanes<T>)), panel(panel),
          barrier(lines, part.thread - part.column, part.columns, part.thread), tape(*c.program), steps(steps),
          words(nullptr), matrices(matrices), turned(turned) {
        if (!PAIRS) return;
        long most_words = most(c.P, c.C * padded) / 2 + 1;
        for (long i = 0; i < p.n_whole_rows; i++)
            if (p.whole_rows[i].matrix >= 0) most_words = most<long>(most_words, panels_of(p.whole_rows[i]).words);
        words = take<T>(part.rows.size() * most_words);
    }

    const tt_panels& panels_of(const tt_whole_row& w) const { return (w.turned ? matrices : turned)[w.matrix]; }

    // The places that both walks know. fresh: the rows begin at this step, from the first state.
    bool set_common(int i, long t, long old_t, bool fresh) {
        const tt_place& q = p.places[i];
        Operand<T>& o = frame.at[i];
        switch (q.kind) {
        case TT_TEMP: o = {nullptr, 0}; return true;
        case TT_UNIT: o = {(T*)c.units[q.index], 0}; return true;
        case TT_KEPT: o = {(T*)c.kept + clock.row(t) * c.kept_row + p.kept_offsets[q.index], c.kept_row}; return true;
        case TT_STEP: {
            const long row = round_up(p.step_widths[q.index], lanes<T>);
            o = {steps[q.index] + part.rows.from * row, row};
            return true;
        }
        case TT_OLD: {
            const long w = c.state_widths[q.index];
            if (fresh) o = {(T*)c.first[q.index] + part.rows.from * w, w};
            else o = {(T*)c.sequences[q.index] + clock.row(old_t) * w, w};
            return true;
        }
        case TT_NEW: {
            const long w = c.state_widths[q.index];
            o = {(T*)c.sequences[q.index] + clock.row(t) * w, w};
            return true;
        }
        default: return false;
        }
    }

    // Moves every row-wise place on by `rows` rows.
    void advance(long rows) {
        for (int i = 0; i < p.n_places; i++)
            if (p.places[i].kind != TT_TEMP) frame.at[i].base += rows * frame.at[i].row;
    }

    // Products and means that need whole rows, at the entry of a stage.
    void whole_rows(long stage, long rows) {
        for (long i = 0; i < p.n_whole_rows; i++) {
            const tt_whole_row& w = p.whole_rows[i];
            if (w.stage != stage) continue;
            const Range u = part.units(w.width, panel);
            const Operand<T> s = frame.at[w.source], d = frame.at[w.d];
            if (w.matrix < 0) {
                spread_mean(d, s, rows, w.width, u);
                continue;
            }
            const Panels<T> m(panels_of(w));
            const Left<T> left = as_left<T, PAIRS>(s, rows, w.source_width, words);
            multiply<T, PAIRS>(m, 0, u.from, u.to, rows, left, {d.base, d.row, nullptr, 0, 0}, true);
        }
    }
};

}  // namespace TT_ISA
