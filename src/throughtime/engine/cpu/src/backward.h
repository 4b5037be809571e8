// Backward through time: step by step the tape and the recurrent product, then the chunk's gradients of the weights.
#pragma once
#include "gradients.h"

namespace TT_ISA {

// What all threads of a backward call share.
template <class T> struct Shared {
    T** steps;
    T** chunks[2];  // two of each, by turns: a thread may be one chunk ahead of another
    T* dz[2];
    T* d_units;     // row_groups x n_units x padded H
    long most_rows, dz_row, padded;

    Shared(const tt_backward_call& b, int row_groups) {
        const tt_forward_call& c = b.pass;
        padded = round_up(c.H, lanes<T>);
        dz_row = c.C * padded + 16;
        most_rows = least<long>(c.offset[c.T], most(c.chunk, c.B));
        steps = take_rows<T>(c.program->step_widths, c.program->n_steps, c.B);
        for (int i = 0; i < 2; i++) {
            chunks[i] = take_rows<T>(c.program->chunk_widths, c.program->n_chunks, most_rows);
            dz[i] = take<T>(most_rows * dz_row);
        }
        d_units = take<T>(row_groups * c.n_units * padded);
    }
};

template <class T, bool PAIRS> struct Backward {
    const tt_backward_call& b;
    const tt_forward_call& c;
    const Shared<T>& shared;
    Step<T, PAIRS> s;
    const Panels<T> Wt, Ut;
    Barrier all;
    Gradients<T, PAIRS> gradients;
    const Clock batch;    // every row
    const Range own;      // the units whose gradients this thread adds up
    T* d_units;
    const void** row_at;  // where the rows of a chunk stand
    T* dx_words;
    Block<T>* blocks;

    Backward(const tt_backward_call& b, const Part& part, Arrivals* lines, const Shared<T>& shared)
        : b(b), c(b.pass), shared(shared), s(c, part, lines, shared.steps, c.matrices, b.turned_matrices, b.Wt->width),
          Wt(*b.Wt), Ut(*b.Ut), all(lines + part.threads, 0, part.threads, part.thread),
          gradients(shared.most_rows, most_units(), most_columns()), batch{c, {0, c.B}}, own(share(c.H, 6, part.thread, part.threads)),
          d_units(shared.d_units + part.thread / part.columns * c.n_units * shared.padded),
          row_at(take<const void*>(shared.most_rows)), dx_words(PAIRS ? take<T>(64 * (Wt.K + 1)) : nullptr),
          blocks(take<Block<T>>(c.C)) {
        const Range u = part.units(c.H, s.panel);
        for (long k = 0; k < c.n_units; k++)
            if (u.size() > 0) std::memset(d_units + k * shared.padded + u.from, 0, u.size() * sizeof(T));
        // Columns that the tape does not write, and the padding, are zero throughout.
        if (shared.padded != c.H || s.p.dz_written != (1ll << c.C) - 1)
            for (int i = 0; i < 2; i++) {
                const Range r = share(shared.most_rows, 1, part.thread, part.threads);
                std::memset(shared.dz[i] + r.from * shared.dz_row, 0, r.size() * shared.dz_row * sizeof(T));
            }
        all.wait();
    }

    // The widest left side of a weight's gradient that a thread converts at once.
    long most_units() const {
        long n = most(c.nx, c.nh) * c.H;
        for (long i = 0; i < b.n_matrices; i++) n = most<long>(n, b.matrix_shapes[2 * i]);
        return n;
    }

    // The widest right side.
    long most_columns() const {
        long n = most(c.D, c.P);
        for (long i = 0; i < b.n_matrices; i++) n = most<long>(n, b.matrix_shapes[2 * i + 1]);
        return n;
    }

    void run() {
        int turn = 0;
        // The chunks of the forward direction, the last first.
        long* begins = take<long>(c.T + 1);
        long n = 0;
        for (long from = 0; from < c.T; from = s.clock.chunk_end(from)) begins[n++] = from;
        begins[n] = c.T;
        for (long i = n - 1; i >= 0; i--, turn ^= 1) {
            const Range span = s.clock.span(begins[i], begins[i + 1]);
            for (long step = begins[i + 1] - 1; step >= begins[i]; step--) one(step, span, turn);
            all.wait();
            weight_gradients(begins[i], begins[i + 1], span, turn, i < n - 1);
            if (b.dx) input_gradient(span, turn);
        }
        all.wait();
        unit_gradients();
    }

    void one(long step, Range span, int turn) {
        enter_phase(s.part.thread, Phase::step_backward);
        const long t = s.clock.time(step), old_t = step ? s.clock.time(step - 1) : 0;
        const long rows = s.clock.running(t), continued = s.clock.continued(step);
        const long first_row = s.clock.row(t) - span.from;
        T* dz = shared.dz[turn] + first_row * shared.dz_row;
        for (long stage = 0; stage < s.p.stages; stage++) {
            if (stage) s.barrier.wait();
            for (int fresh = 0; fresh < 2; fresh++) {
                const long m0 = fresh ? continued : 0, m1 = fresh ? rows : continued;
                if (m0 >= m1) continue;
                place(t, old_t, fresh, first_row, dz, turn);
                s.advance(m0);
                if (stage) s.whole_rows(stage, m1 - m0);
                if (step) s.tape.fetch_rows = c.offset[old_t] - c.offset[t];
                s.tape.stage(stage, s.frame, m1 - m0, s.part, s.panel);
            }
        }
        const bool product = c.nh && !b.truncated;
        for (long k = product ? 1 : 0; k < c.S; k++)
            if (!(s.p.ds_written >> k & 1)) clear(k, rows);
        if (product || s.p.stages > 1) s.barrier.wait();
        if (!product || rows == 0) return;
        enter_phase(s.part.thread, Phase::state_gradient);
        const long w = c.state_widths[0], K = c.nh * s.padded;
        T* ds = (T*)b.ds[0] + s.part.rows.from * w;
        const Range u = s.part.units(w, s.panel);
        const Left<T> left = as_left<T, PAIRS>({dz + c.h0 * s.padded, shared.dz_row}, rows, K, s.words);
        multiply<T, PAIRS>(Ut, 0, u.from, u.to, rows, left, {ds, w, s.p.ds_written & 1 ? ds : nullptr, w, 0}, true);
    }

    void place(long t, long old_t, bool fresh, long first_row, T* dz, int turn) {
        for (int i = 0; i < s.p.n_places; i++) {
            if (s.set_common(i, t, old_t, fresh)) continue;
            const tt_place& q = s.p.places[i];
            Operand<T>& o = s.frame.at[i];
            switch (q.kind) {
            case TT_DY: o = {(T*)b.dy[q.index] + s.clock.row(t) * b.dy_rows[q.index], b.dy_rows[q.index]}; break;
            case TT_DS: {
                const long w = c.state_widths[q.index];
                o = {(T*)b.ds[q.index] + s.part.rows.from * w, w};
                break;
            }
            case TT_DZ: o = {dz + q.index * s.padded, shared.dz_row}; break;
            case TT_DUNIT: o = {d_units + q.index * s.padded, 0}; break;
            default: {  // TT_CHUNK
                const long row = round_up(s.p.chunk_widths[q.index], lanes<T>);
                o = {shared.chunks[turn][q.index] + first_row * row, row};
            }
            }
        }
    }

    void clear(long k, long rows) {
        const long w = c.state_widths[k];
        const Range u = s.part.units(w, s.panel);
        for (long m = 0; m < rows && u.size() > 0; m++)
            std::memset((T*)b.ds[k] + (s.part.rows.from + m) * w + u.from, 0, u.size() * sizeof(T));
    }

    void weight_gradients(long from, long to, Range span, int turn, bool add) {
        enter_phase(s.part.thread, Phase::weight_gradient);
        const long rows = span.size(), row = shared.dz_row;
        T* dz = shared.dz[turn] + own.from;
        const long x_bytes = c.D * (b.x_bf16 ? 2 : (long)sizeof(T));
        for (long r = 0; r < rows; r++) row_at[r] = (const char*)b.x_rows + (span.from + r) * x_bytes;
        for (long k = 0; k < c.nx; k++)
            blocks[k] = {{dz + k * s.padded, row}, (T*)b.dW + (b.x_blocks[k] * c.H + own.from) * c.D, add};
        gradients.outer(blocks, c.nx, {row_at, c.D, b.x_bf16 != 0}, own.size(), rows);
        if (c.nh) {
            previous_rows(from, to, span);
            for (long g = 0, k = c.h0; g < c.nh; g++, k++)
                blocks[g] = {{dz + k * s.padded, row}, (T*)b.dU + (b.h_blocks[k] * c.H + own.from) * c.P, add};
            gradients.outer(blocks, c.nh, {row_at, c.P, false}, own.size(), rows);
        }
        enter_phase(s.part.thread, Phase::sums);
        for (long k = 0; k < c.C; k++)
            gradients.column_sums((T*)b.db + c.column_of[k] * c.H + own.from, {dz + k * s.padded, row}, own.size(), rows, add);
        for (long i = 0; i < b.n_pairs; i++) matrix_gradient(b.pairs_of + 3 * i, rows, turn, add);
    }

    // row_at[r] = the first state before row r of the chunk.
    void previous_rows(long from, long to, Range span) {
        const long w = c.state_widths[0];
        for (long step = from; step < to; step++) {
            const long t = batch.time(step), continued = batch.continued(step), r = c.offset[t] - span.from;
            for (long m = 0; m < batch.running(t); m++)
                row_at[r + m] = m < continued ? (const T*)c.sequences[0] + (c.offset[batch.time(step - 1)] + m) * w
                                              : (const T*)c.first[0] + m * w;
        }
    }

    void matrix_gradient(const int64_t* pair, long rows, int turn, bool add) {
        const long matrix = pair[0], height = b.matrix_shapes[2 * matrix], width = b.matrix_shapes[2 * matrix + 1];
        for (const int64_t* earlier = b.pairs_of; earlier < pair; earlier += 3) add = add || earlier[0] == matrix;
        const Range u = share(height, 6, s.part.thread, s.part.threads);
        const Operand<T> left = over_chunk(pair[1], turn), right = over_chunk(pair[2], turn);
        for (long r = 0; r < rows; r++) row_at[r] = right.base + r * right.row;
        const Block<T> one = {{left.base + u.from, left.row}, (T*)b.d_matrices[matrix] + u.from * width, add};
        gradients.outer(&one, 1, {row_at, width, false}, u.size(), rows);
    }

    Operand<T> over_chunk(long place, int turn) const {
        const tt_place& q = s.p.places[place];
        if (q.kind == TT_DZ) return {shared.dz[turn] + q.index * s.padded, shared.dz_row};
        return {shared.chunks[turn][q.index], round_up(s.p.chunk_widths[q.index], lanes<T>)};
    }

    void input_gradient(Range span, int turn) {
        enter_phase(s.part.thread, Phase::input_gradient);
        const Range own_rows = share(span.size(), 1, s.part.thread, s.part.threads);
        const long block = PAIRS ? 64 : most(own_rows.size(), 1l);
        for (long r = own_rows.from; r < own_rows.to; r += block) {
            const long n = least(block, own_rows.to - r);
            const Left<T> left = as_left<T, PAIRS>({shared.dz[turn] + r * shared.dz_row, shared.dz_row}, n,
                                                   c.nx * s.padded, dx_words);
            multiply<T, PAIRS>(Wt, 0, 0, c.D, n, left, {(T*)b.dx + (span.from + r) * c.D, c.D, nullptr, 0, 0}, true);
        }
    }

    void unit_gradients() {
        for (long k = 0; k < c.n_units; k++)
            for (long u = own.from; u < own.to; u++) {
                T sum = 0;
                for (int g = 0; g < s.part.row_groups; g++) sum += shared.d_units[(g * c.n_units + k) * shared.padded + u];
                ((T*)b.d_units[k])[u] = sum;
            }
    }
};

}  // namespace TT_ISA
