// The products of bf16 pairs of one build, against plain sums: whole numbers, whose sum is one number however it is
// added up. Compiled by test_tiles.py with tiles in plain C++; compiled for a processor with AMX, with
// -DREQUEST_TILES, it tests the processor's.
//
//     products_selftest [every]     every: sizes are taken `every` apart (1)
//     products_selftest unshaped    uses a tile before shapes are loaded, which must stop it
//
// Prints what it did and a checksum of some products of real numbers, the same bits wherever tiles are right.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "gradients.h"

using namespace TT_ISA;

namespace {

long failures = 0, products = 0;
uint64_t seed = 1;

unsigned draw() {
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return seed >> 33;
}
int whole() { return (int)(draw() % 13) - 6; }
float real() { return (draw() % 65536) / 65536.0f - 0.5f; }
const float nan_ = __builtin_nanf("");

float pair(float low, float high) {
    const uint32_t both = to_bf16(low) | to_bf16(high) << 16;
    float word;
    std::memcpy(&word, &both, 4);
    return word;
}
float half_of(float word, int which) {
    uint32_t both;
    std::memcpy(&both, &word, 4);
    return from_bf16(which ? both >> 16 : both & 0xffff);
}

void check(const char* what, float got, double wanted, int i, int j, int M, int K, int N) {
    if (got == (float)wanted) return;
    if (failures++ < 20) std::printf("%s %d x %d words x %d: [%d, %d] is %g, not %g\n", what, M, K, N, i, j, got, wanted);
}

// One panel: A [M, K words] and C [M, N] in rows that are longer, whose ends must not be read and not be written.
void panel(int M, int K, int vectors, int part, int kind) {
    const int width = vectors * lanes<float>, N = width - lanes<float> + part, a_row = K + 3, c_row = N + 5;
    std::vector<float> A(M * a_row, nan_), B(K * width + 1024, nan_), C(M * c_row + 64, nan_), in(M * c_row, nan_);
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++) A[i * a_row + k] = pair(whole(), whole());
    for (int k = 0; k < K; k++)
        for (int j = 0; j < width; j++) B[k * width + j] = j < N ? pair(whole(), whole()) : 0;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) in[i * c_row + j] = C[i * c_row + j] = whole();
    // What C starts from: nothing, one row for all, other memory, C itself.
    const float* from[] = {nullptr, in.data(), in.data(), C.data()};
    const long from_row[] = {0, 0, c_row, c_row};
    const std::vector<float> before = C;
    {
        [[maybe_unused]] TilesInUse tiles;
        const Target<float> target = {C.data(), c_row, from[kind], from_row[kind], part};
        if (M >= rows_for_tiles && has_tiles) times_panel_on_tiles<float>(M, K, {A.data(), a_row, 1}, B.data(), vectors, target);
        else times_panel<float, false, true>(M, K, {A.data(), a_row, 1}, B.data(), vectors, target);
    }
    products++;
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double sum = kind == 0 ? 0 : (kind == 3 ? before[i * c_row + j] : in[(kind == 1 ? 0 : i) * c_row + j]);
            for (int k = 0; k < K; k++)
                for (int h = 0; h < 2; h++) sum += half_of(A[i * a_row + k], h) * half_of(B[k * width + j], h);
            check("panel", C[i * c_row + j], sum, i, j, M, K, N);
        }
        for (int j = N; j < c_row; j++)
            if (C[i * c_row + j] == C[i * c_row + j]) check("beyond the row", 0, 1, i, j, M, K, N);
    }
}

// A weight [N, K numbers] packed for a product with its transpose, and a left side of bf16 pairs.
void packed(int M, int K, int N) {
    const int words = (K + 1) / 2, L = lanes<float>;
    std::vector<uint16_t> weight(N * K);
    for (auto& w : weight) w = to_bf16(whole());
    std::vector<float> out(words * round_up(N, L) + 1024, nan_), A(M * words), C(M * N, nan_);
    const int64_t block = 0;
    const tt_packing p = {out.data(), weight.data(), &block, 1, N, K, K, words, widest * L, 1, 1, 1, TT_FLOAT32};
    pack<float>(p, 0, (N + p.width - 1) / p.width);
    for (int i = 0; i < M; i++)
        for (int k = 0; k < words; k++) A[i * words + k] = pair(whole(), 2 * k + 1 < K ? whole() : 0);
    const tt_panels shape = {out.data(), words, N, p.width, 1};
    {
        [[maybe_unused]] TilesInUse tiles;
        multiply<float, true>(Panels<float>(shape), 0, 0, N, M, {A.data(), words, 1}, {C.data(), N, nullptr, 0, 0}, true);
    }
    products++;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += half_of(A[i * words + k / 2], k % 2) * from_bf16(weight[j * K + k]);
            check("packed", C[i * N + j], sum, i, j, M, K, N);
        }
}

// The gradient of two weights [units, width], d (+)= a^T b over `rows` rows; b in float32 or in bf16.
void gradient(int units, int rows, int width, bool low, bool add) {
    std::vector<float> a(rows * (units + 3), nan_), b(rows * width), d(2 * units * width);
    std::vector<uint16_t> b_low(rows * width);
    std::vector<const void*> at(rows);
    for (int r = 0; r < rows; r++) {
        for (int u = 0; u < units; u++) a[r * (units + 3) + u] = whole();
        for (int j = 0; j < width; j++) b_low[r * width + j] = to_bf16(b[r * width + j] = whole());
        at[r] = low ? (const void*)&b_low[r * width] : &b[r * width];
    }
    for (auto& v : d) v = whole();
    const std::vector<float> before = d;
    float* room = take<float>(1 << 17);  // what the call will find in its scratch memory
    for (int i = 0; i < 1 << 17; i++) room[i] = nan_;
    scratch_reset();
    const Block<float> blocks[] = {{{a.data(), units + 3}, d.data(), add}, {{a.data(), units + 3}, d.data() + units * width, !add}};
    {
        [[maybe_unused]] TilesInUse tiles;
        Gradients<float, true>(rows, 2 * units, width).outer(blocks, 2, {at.data(), width, low}, units, rows);
    }
    scratch_reset();
    products += 2;
    for (int q = 0; q < 2; q++)
        for (int u = 0; u < units; u++)
            for (int j = 0; j < width; j++) {
                const int n = (q * units + u) * width + j;
                double sum = blocks[q].add ? before[n] : 0;
                for (int r = 0; r < rows; r++) sum += a[r * (units + 3) + u] * b[r * width + j];
                check("gradient", d[n], sum, u, j, units, rows, width);
            }
}

// Products of real numbers: a checksum of their bits.
uint64_t real_numbers() {
    uint64_t h = 1469598103934665603ull;
    seed = 1;
    for (int n = 4; n < 70; n += 5) {
        const int K = n, width = 48, M = n + 1;
        std::vector<float> A(M * K), B(K * width + 1024), C(M * width);
        for (auto& v : A) v = pair(real(), real());
        for (auto& v : B) v = pair(real(), real());
        for (auto& v : C) v = real();
        {
            [[maybe_unused]] TilesInUse tiles;
            if constexpr (has_tiles)
                times_panel_on_tiles<float>(M, K, {A.data(), K, 1}, B.data(), 3, {C.data(), width, C.data(), width, 16});
        }
        for (float v : C) {
            uint32_t bits;
            std::memcpy(&bits, &v, 4);
            h = (h ^ bits) * 1099511628211ull;
        }
    }
    return h;
}

}  // namespace

int main(int argc, char** argv) {
#if defined(REQUEST_TILES)
    // Linux gives tiles to a process that asks: ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA.
    if (syscall(SYS_arch_prctl, 0x1023, 18)) {
        std::puts("the operating system gives no tiles");
        return 2;
    }
#endif
#if TT_TILES
    if (argc > 1 && !std::strcmp(argv[1], "unshaped")) tile_zero<0>();  // stops the program
#endif
    const int every = argc > 1 ? most(1, std::atoi(argv[1])) : 1;
    // Rows, words and columns, up to more than twice what a block takes of each.
    for (int M = 1; M < 70; M += every)
        for (int K = 0; K < 36; K += every)
            for (int vectors = 1; vectors <= widest; vectors++) panel(M, K, vectors, 1 + (M + K) % 16, (M + K + vectors) % 4);
    for (int kind = 0; kind < 4; kind++) panel(40, 700, widest, 16, kind);  // the sum in two blocks
    for (int n = 1; n < 140; n += every) packed(1 + n % 37, 1 + n * 7 % 75, n);
    for (int n = 1; n < 140; n += every) gradient(1 + n * 5 % 67, 1 + n * 11 % 71, n, n % 2, n % 3);
    std::printf("%ld products, %ld wrong numbers; of real numbers %016llx\n", products, failures, (unsigned long long)real_numbers());
    return failures != 0;
}
