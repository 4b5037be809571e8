// Weights folded for one step: gates whose gradients are multiples of one value share one product.
#pragma once
#include "packing.h"
#include "team.h"

namespace TT_ISA {

constexpr int most_columns = 62;

// d = sum_i f_i[u] * from_i over H rows u of NV vectors each.
template <class T, int NV> void fold_panel(T* d, const T* const* from, const T* const* f, int blocks, long H) {
    constexpr int L = lanes<T>;
    for (long u = 0; u < H; u++) {
        Vec<T> sum[NV] = {};
        const long at = u * NV * L;
        for (int i = 0; i < blocks; i++) {
            const Vec<T> by = spread(f[i][u]);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) sum[j] = by * load(from[i] + at + j * L) + sum[j];
        }
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) store(d + at + j * L, sum[j]);
    }
}

// The panels of sum_q diag(factor_q) (block q of `all`), written to `folded`: over the columns of each base in turn.
// Block q is column first + q; n columns have one; the factors of a column stand at factors + column * H.
template <class T>
Panels<T> fold(T* folded, const Panels<T>& all, const int64_t* base_of, const T* factors, long first, long n, Range of, long H) {
    constexpr int L = lanes<T>;
    const long padded = round_up(H, L);
    const tt_panels shape = {folded, of.size() * padded, all.N, all.width, 1};
    const Panels<T> out(shape);
    for (long column = 0; column < all.padded(); column += all.width) {
        const long w = least<long>(all.width, all.padded() - column);
        for (long j = of.from; j < of.to; j++) {
            const T *from[most_columns], *f[most_columns];
            int blocks = 0;
            for (long q = 0; q < n; q++)
                if (base_of[first + q] == j) {
                    from[blocks] = all.panel(0, column) + q * padded * w;
                    f[blocks++] = factors + (first + q) * H;
                }
            T* d = folded + column * out.K + (j - of.from) * padded * w;
            switch (w / L) {
            case 1: fold_panel<T, 1>(d, from, f, blocks, H); break;
            case 3: fold_panel<T, 3>(d, from, f, blocks, H); break;
            case 4: fold_panel<T, 4>(d, from, f, blocks, H); break;
            default: fold_panel<T, 2>(d, from, f, blocks, H);
            }
            std::memset(d + H * w, 0, (padded - H) * w * sizeof(T));
        }
    }
    return out;
}

}  // namespace TT_ISA
