// Many gradients sent back through one pass, side by side: one row for each loss step, sequence after sequence.
//
// All rows of a sequence share what the pass left at each step, so that it is read once for a block of rows. No row
// waits for another: a block goes from the last step to the first without a barrier. A row is kept near 1 by a power
// of two of its own, so that a gradient may vanish or explode as far as float64 reaches, whatever T is.
//
// Where the gradients of several net inputs are multiples of one value, its base, unit by unit, the weights are folded:
// sum_g (r * a_g) U_g = r (sum_g diag(a_g) U_g), one product for each base. The sum is made once for a block of rows.
#pragma once
#include <cmath>

#include "fold.h"
#include "squares.h"
#include "step.h"

namespace TT_ISA {

template <class T> struct Map {
    const tt_map_call& c;
    const tt_program& p;
    const long padded, dz_row, base_row, dx_row;
    const Panels<T> Ut, Wt;
    Tape<T> tape;
    Frame<T> frame;
    T *dz, *bases, *folded, *dx, **ds, **given, **steps, **totals;
    const T *kept, *factors, *squares;  // what this step multiplies by
    double** size;                      // of each state's total gradient, by row
    long *ds_row;
    int *exponent, *shift;  // a row as it stands is 2^exponent of what it is; what to shift it by before the next step
    bool* empty;            // nothing has entered the row yet

    explicit Map(const tt_map_call& c)
        : c(c), p(*c.program), padded(round_up(c.H, lanes<T>)), dz_row(c.C * padded + 16), base_row(c.bases * padded + 16),
          dx_row(round_up(c.D, lanes<T>)), Ut(*c.Ut), Wt(*c.Wt), tape(*c.program), dz(take<T>(c.block * dz_row)),
          bases(take<T>(c.block * base_row)), folded(nullptr), dx(c.dx ? take<T>(c.block * dx_row) : nullptr),
          ds(take_rows<T>(c.state_widths, c.S, c.block)),
          given(c.arrived ? take_rows<T>(c.state_widths, c.S, c.block) : nullptr), steps(take_rows<T>(p.step_widths, p.n_steps, c.block)),
          totals(take<T*>(c.S)), size(take<double*>(c.S)), ds_row(take<long>(c.S)), exponent(take<int>(c.block)),
          shift(take<int>(c.block)), empty(take<bool>(c.block)) {
        long own = 0;
        for (long s = 0; s < c.S; s++) {
            ds_row[s] = round_up(c.state_widths[s], lanes<T>);
            size[s] = take<double>(c.block);
            if (c.total_kind[s] == 0) totals[own++] = take<T>(c.block * ds_row[s]);
        }
        // Columns that the tape does not write, and the padding, are zero throughout.
        std::memset(dz, 0, c.block * dz_row * sizeof(T));
        std::memset(bases, 0, c.block * base_row * sizeof(T));
        if (!c.bases) return;
        folded = take<T>(c.bases * padded * most(Ut.padded(), Wt.padded()) + 1024);  // the product fetches ahead
    }

    // Task i of the call: a block of rows over a part of the sequences.
    void task(long i) {
        const long block = i / c.parts, part = i % c.parts;
        const Range rows = {block * c.block, least(c.rows, (block + 1) * c.block)}, batch = share(c.B, 1, part, c.parts);
        double* sizes = c.sizes + part * (1 + c.S) * c.rows * c.T;
        for (long b = batch.from; b < batch.to; b++) sequence(rows, b, sizes);
    }

    void sequence(Range rows, long b, double* sizes) {
        const long length = c.lengths[b];
        long first = rows.from, n = 0;
        // A loss in the padding of its sequence sends nothing.
        if (!c.above)
            while (first < rows.to && c.loss_steps[first] >= length) first++;
        for (long i = 0; i < length; i++) {
            const long k = c.reverse ? i : length - 1 - i;
            for (long m = 0; m < n; m++)
                if (shift[m]) scale(m, shift[m]);
            while (first + n < rows.to && (c.reverse ? c.starts[first + n] <= k : c.starts[first + n] >= k)) begin(n++);
            if (n == 0) continue;
            for (long m = 0; m < n; m++) enter(first + m, m, k, b);
            step(n, k, b, sizes + k * c.rows + first);
            if (c.arrived) hand_out(first, n, k, b);
            if (c.dx) input_gradient(first, n, k, b);
            if (i < length - 1) to_next(n);
        }
    }

    void begin(long m) {
        for (long s = 0; s < c.S; s++) std::memset(ds[s] + m * ds_row[s], 0, ds_row[s] * sizeof(T));
        exponent[m] = shift[m] = 0;
        empty[m] = true;
    }

    void scale(long m, int by) {
        const T f = (T)two_to(by);
        for (long s = 0; s < c.S; s++)
            for (long u = 0; u < ds_row[s]; u++) ds[s][m * ds_row[s] + u] *= f;
        exponent[m] += by;
        shift[m] = 0;
    }

    // What enters row `row` from outside at step k: the loss of this very step, and what comes from layers above.
    void enter(long row, long m, long k, long b) {
        for (long s = 0; s < c.S; s++) {
            const long w = c.state_widths[s];
            if (c.direct && c.direct[s] && c.loss_steps[row] == k) join(m, s, (const double*)c.direct[s] + (k * c.B + b) * w);
            if (c.above && c.above[s]) join(m, s, (const double*)c.above[s] + ((row * c.T + k) * c.B + b) * w);
        }
    }

    void join(long m, long s, const double* g) {
        const long w = c.state_widths[s];
        const double largest = largest_of(g, w);
        if (largest == 0) return;
        if (std::isfinite(largest)) {
            const int near = -std::ilogb(largest);
            if (empty[m]) exponent[m] = largest < far_away<T> && largest > 1 / far_away<T> ? 0 : near;
            else if (std::ilogb(largest) + exponent[m] > std::ilogb(far_away<T>)) scale(m, near - exponent[m]);
        }
        empty[m] = false;
        const double f = two_to(exponent[m]);
        T* d = ds[s] + m * ds_row[s];
        for (long u = 0; u < w; u++) d[u] += (T)(g[u] * f);
    }

    void step(long n, long k, long b, double* sizes) {
        kept = (const T*)c.kept + (k * c.B + b) * c.kept_row;
        factors = kept + c.factors;
        squares = factors + c.C * c.H;
        for (long s = 0; s < c.S; s++)
            if (c.total_kind[s] == 2) measure_state(s, n, ds[s], ds_row[s]);
        if (c.arrived) hand_out_given(n);
        place();
        for (long stage = 0; stage < p.stages; stage++) {
            if (stage) whole_rows(stage, n);
            for (long i = 0; i < p.n_sweeps; i++)
                if (p.sweeps[i].stage == stage) tape.sweep(p.sweeps[i], frame, n, 0, p.sweeps[i].width);
        }
        for (long s = 0; s < c.S; s++)
            if (c.total_kind[s] == 0) measure_state(s, n, totals[c.total_at[s]], ds_row[s]);
        for (long m = 0; m < n; m++) measure(m, sizes + m);
    }

    void place() {
        for (int i = 0; i < p.n_places; i++) {
            const tt_place& q = p.places[i];
            Operand<T>& o = frame.at[i];
            switch (q.kind) {
            case TT_UNIT: o = {(T*)c.units[q.index], 0}; break;
            case TT_DS: o = {ds[q.index], ds_row[q.index]}; break;
            case TT_DZ:
                if (c.bases) o = {bases + q.index * padded, base_row};
                else o = {dz + q.index * padded, dz_row};
                break;
            case TT_STEP: o = {steps[q.index], round_up(p.step_widths[q.index], lanes<T>)}; break;
            case TT_KEPT:
                // What the tape "keeps" itself are total gradients of states.
                if (q.index < c.n_kept) o = {(T*)kept + p.kept_offsets[q.index], 0};
                else o = total(q.index - c.n_kept);
                break;
            default: o = {nullptr, 0};  // TT_TEMP; no other kind is on a linear tape
            }
        }
    }

    Operand<T> total(long own) const {
        for (long s = 0; s < c.S; s++)
            if (c.total_kind[s] == 0 && c.total_at[s] == own) return {totals[own], ds_row[s]};
        return {nullptr, 0};
    }

    void whole_rows(long stage, long n) {
        for (long i = 0; i < p.n_whole_rows; i++) {
            const tt_whole_row& w = p.whole_rows[i];
            if (w.stage != stage) continue;
            const Operand<T> s = frame.at[w.source], d = frame.at[w.d];
            if (w.matrix < 0) {
                spread_mean(d, s, n, w.width, {0, w.width});
                continue;
            }
            const Panels<T> m((w.turned ? c.matrices : c.turned_matrices)[w.matrix]);
            multiply<T, false>(m, 0, 0, w.width, n, {s.base, s.row, 1}, {d.base, d.row, nullptr, 0, 0}, true);
        }
    }

    void measure_state(long s, long n, const T* v, long row) {
        for (long m = 0; m < n; m++) size[s][m] = size_of(v + m * row, 1, 0, c.state_widths[s]);
    }

    // The sizes of all that arrived in a row: of the net inputs, then of each state. How large it is says whether the
    // row must be brought back near 1.
    void measure(long m, double* at) {
        const double z = c.bases ? measure_bases(m) : size_of(dz + m * dz_row, c.C, padded, c.H);
        at[0] = joined(at[0], as_it_is(z, m));
        double whole = 0;
        for (long s = 0; s < c.S; s++) {
            double& to = at[(1 + s) * c.rows * c.T];
            to = joined(to, as_it_is(size[s][m], m));
            whole = most(whole, size[s][m]);
        }
        if (whole > 0 && std::isfinite(whole) && (whole > far_away<T> || whole < 1 / far_away<T>)) shift[m] = -std::ilogb(whole);
    }

    // ||dz||^2 = sum over bases of base^2 * (the sum of the squares of its columns' factors).
    double measure_bases(long m) {
        Sums all = {0, 0};
        bool in_range = true;
        for (long j = 0; j < c.bases; j++) {
            const T* v = bases + m * base_row + j * padded;
            const Sums sums = sums_of_squares<T, true>(v, squares + j * c.H, c.H);
            in_range = in_range && safe<T>(sums.plain);
            all.plain += sums.plain;
            all.weighted += sums.weighted;
            for (long s = 0; s < c.S; s++)
                if (c.total_kind[s] == 1 && c.total_at[s] == j)
                    size[s][m] = safe<T>(sums.plain) ? std::sqrt(sums.plain) : size_of(v, 1, 0, c.H);
        }
        // Factors whose squares may have left the range of T.
        if (in_range && safe<T>(all.weighted) && all.weighted > least_ratio<T> * all.plain) return std::sqrt(all.weighted);
        unfold(m, m + 1);
        return size_of(dz + m * dz_row, c.C, padded, c.H);
    }

    // The gradients of the net inputs themselves, from their bases.
    void unfold(long from, long to) {
        for (long m = from; m < to; m++)
            for (long q = 0; q < c.C; q++) {
                const T *v = bases + m * base_row + c.base_of[q] * padded, *f = factors + q * c.H;
                T* d = dz + m * dz_row + q * padded;
                for (long u = 0; u < c.H; u++) d[u] = v[u] * f[u];
            }
    }

    // rows of dz, columns [first, first + n), times `all`. For few rows it does not pay to fold.
    void times(const Panels<T>& all, long first, long n, Range of, long rows, Target<T> to) {
        if (c.bases && rows * (n - of.size()) > 2 * n + of.size()) {
            const Panels<T> B = fold<T>(folded, all, c.base_of, factors, first, n, of, c.H);
            multiply<T, false>(B, 0, 0, B.N, rows, {bases + of.from * padded, base_row, 1}, to, false);
            return;
        }
        if (c.bases) unfold(0, rows);
        multiply<T, false>(all, 0, 0, all.N, rows, {dz + first * padded, dz_row, 1}, to, false);
    }

    // The gradients of the states before the step: along the tape, done already, and through the recurrent product.
    void to_next(long n) {
        const bool product = c.nh && !c.truncated;
        for (long s = 0; s < c.S; s++)
            if (!(p.ds_written >> s & 1) && !(product && s == 0)) std::memset(ds[s], 0, n * ds_row[s] * sizeof(T));
        if (product)
            times(Ut, c.h0, c.nh, {c.base_h, c.bases}, n, {ds[0], ds_row[0], p.ds_written & 1 ? ds[0] : nullptr, ds_row[0], 0});
    }

    void input_gradient(long first, long n, long k, long b) {
        times(Wt, 0, c.nx, {0, c.bases_x}, n, {dx, dx_row, nullptr, 0, 0});
        const double* slope = c.input_slope ? (const double*)c.input_slope + (k * c.B + b) * c.D : nullptr;
        for (long m = 0; m < n; m++) {
            double* out = (double*)c.dx + (((first + m) * c.T + k) * c.B + b) * c.D;
            write(out, dx + m * dx_row, c.D, m);
            if (slope)
                for (long u = 0; u < c.D; u++) out[u] *= slope[u];
        }
    }

    // What arrived itself, for those who ask: [rows, T, B, .] of the net inputs, by column, and of each state.
    void hand_out(long first, long n, long k, long b) {
        if (c.bases) unfold(0, n);
        for (long m = 0; m < n; m++) {
            const long at = ((first + m) * c.T + k) * c.B + b;
            for (long q = 0; q < c.C; q++)
                write((double*)c.arrived[0] + (at * c.C + c.column_of[q]) * c.H, dz + m * dz_row + q * padded, c.H, m);
            for (long s = 0; s < c.S; s++) {
                const long i = c.total_at[s];
                const T* v = c.total_kind[s] == 0   ? totals[i] + m * ds_row[s]
                             : c.total_kind[s] == 1 ? bases + m * base_row + i * padded
                                                    : given[s] + m * ds_row[s];
                write((double*)c.arrived[1 + s] + at * c.state_widths[s], v, c.state_widths[s], m);
            }
        }
    }

    // The tape writes over the gradients that came in: those who ask for them get a copy.
    void hand_out_given(long n) {
        for (long s = 0; s < c.S; s++)
            if (c.total_kind[s] == 2) std::memcpy(given[s], ds[s], n * ds_row[s] * sizeof(T));
    }

    void write(double* out, const T* v, long n, long m) const {
        if (exponent[m])
            for (long u = 0; u < n; u++) out[u] = as_it_is(v[u], m);
        else
            for (long u = 0; u < n; u++) out[u] = v[u];
    }

    TT_INLINE double as_it_is(double a, long m) const { return exponent[m] ? std::ldexp(a, -exponent[m]) : a; }
};

}  // namespace TT_ISA
