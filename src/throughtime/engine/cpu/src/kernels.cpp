// The kernels for one instruction set: compiled several times, with TT_ISA and TT_BYTES given on the command line.
#include "kernels.h"

#include "backward.h"
#include "forward.h"
#include "map.h"

#include <cstring>
#include <new>

namespace TT_ISA {
namespace {

template <class T, bool PAIRS>
void forward(const tt_forward_call& c, int me, int threads, void* lines, void* const* steps) {
    FlushDenormals flush;
    [[maybe_unused]] TilesInUse tiles;
    const Part part(c, me, threads, threads == c.threads ? c.row_groups : 1);
    enter_phase(me, Phase::rest);
    Forward<T, PAIRS>(c, part, (Arrivals*)lines, (T* const*)steps).run();
    enter_phase(me, Phase::outside);
}

template <class T, bool PAIRS>
void backward(const tt_backward_call& b, int me, int threads, void* lines, const void* shared) {
    FlushDenormals flush;
    [[maybe_unused]] TilesInUse tiles;
    const Part part(b.pass, me, threads, threads == b.pass.threads ? b.pass.row_groups : 1);
    enter_phase(me, Phase::rest);
    Backward<T, PAIRS>(b, part, (Arrivals*)lines, *(const Shared<T>*)shared).run();
    enter_phase(me, Phase::outside);
}

// Tasks are taken one after another, the longest first, by whoever is free: each has its own place to write to.
template <class T> void map(const tt_map_call& c, int64_t* next) {
    FlushDenormals flush;
    Map<T> worker(c);
    const int64_t tasks = (c.rows + c.block - 1) / c.block * c.parts;
    for (int64_t i; (i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < tasks;) worker.task(i);
}

// Adds the parts up into the first, for some of the numbers.
void join(const tt_map_call& c, int64_t from, int64_t to) {
    if (c.apart) return;
    const int64_t each = (1 + c.S) * c.rows * c.T;
    for (int64_t part = 1; part < c.parts; part++)
        for (int64_t i = from; i < to; i++) c.sizes[i] = joined(c.sizes[i], c.sizes[part * each + i]);
}

template <class T> void** steps_of(const tt_forward_call& c) {
    return (void**)take_rows<T>(c.program->step_widths, c.program->n_steps, c.B);
}

template <class T> void* share_memory(const tt_backward_call& b) {
    return new (scratch_take(sizeof(Shared<T>))) Shared<T>(b, b.pass.threads);
}

template <class T> void apply(int64_t code, void* out, const void* a, int64_t n) {
    FlushDenormals flush;
    T* d = (T*)out;
    T* s = (T*)a;
    for (int64_t i = 0; i < n; i += 256)
        tile_functions<T>[code]({d + i, 0}, {s + i, 0}, {s + i, 0}, {s + i, 0}, 1, least<int64_t>(256, n - i), T(1), T(0));
}

// Multiply-adds that wait for nothing: the most that the machine can do.
template <class T> double peak(int64_t rounds) {
    constexpr int chains = 10;
    Vec<T> sums[chains];
    for (int i = 0; i < chains; i++) sums[i] = spread(T(i));
    Vec<T> a = spread(T(0.999)), b = spread(T(1e-3));
    __asm__ volatile("" : "+m"(a), "+m"(b));
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 10
        for (int i = 0; i < chains; i++) sums[i] = sums[i] * a + b;
    }
    for (int i = 0; i < chains; i++) __asm__ volatile("" ::"m"(sums[i]));
    return 2.0 * chains * lanes<T> * rounds;
}

// A checksum of every bit (Fletcher's two sums, lane by lane): no write to a weight goes unnoticed, and none moves.
uint64_t checksum(const void* memory, int64_t bytes) {
    typedef uint64_t Words __attribute__((vector_size(TT_BYTES)));
    constexpr int n = 4, lanes = TT_BYTES / 8, block = n * TT_BYTES;
    const char* p = (const char*)memory;
    Words sum[n] = {}, sum_of_sums[n] = {};
    auto take = [&](const char* from) {
        for (int i = 0; i < n; i++) {
            Words w;
            std::memcpy(&w, from + i * TT_BYTES, TT_BYTES);
            sum[i] += w;
            sum_of_sums[i] += sum[i];
        }
    };
    for (; bytes >= block; bytes -= block, p += block) take(p);
    char rest[block] = {};
    if (bytes) std::memcpy(rest, p, bytes);
    take(rest);
    uint64_t h = 1469598103934665603ull;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < lanes; k++) h = ((h ^ sum[i][k]) * 1099511628211ull ^ sum_of_sums[i][k]) * 1099511628211ull;
    return h;
}

#if defined(__AVX512BF16__) || TT_TILES
constexpr bool has_pairs = true;
#else
constexpr bool has_pairs = false;
#endif

#if TT_TILES
// A product of whole numbers, which has one right result however it is added up: more rows and words than whole tiles.
bool tiles_are_right() {
    constexpr int rows = 37, words = 21, vectors = 3, columns = vectors * tile_words;
    const auto a = [](int i, int k) { return (i * 7 + k * 3) % 9 - 4; };
    const auto b = [](int k, int j) { return (k * 5 + j * 2) % 7 - 3; };
    const auto pair = [](int low, int high) {
        const uint32_t both = to_bf16(low) | to_bf16(high) << 16;
        float word;
        std::memcpy(&word, &both, 4);
        return word;
    };
    float A[rows][words], B[words][columns], C[rows][columns];
    for (int k = 0; k < words; k++) {
        for (int i = 0; i < rows; i++) A[i][k] = pair(a(i, 2 * k), a(i, 2 * k + 1));
        for (int j = 0; j < columns; j++) B[k][j] = pair(b(2 * k, j), b(2 * k + 1, j));
    }
    {
        TilesInUse tiles;
        times_panel_on_tiles<float>(rows, words, {A[0], words, 1}, B[0], vectors, {C[0], columns, nullptr, 0, tile_words});
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            int sum = 0;
            for (int k = 0; k < 2 * words; k++) sum += a(i, k) * b(k, j);
            if (C[i][j] != (float)sum) return false;
        }
    return true;
}
#else
constexpr bool (*tiles_are_right)() = nullptr;
#endif

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {
    {forward<float, false>, forward<double, false>, forward<float, has_pairs>},
    {backward<float, false>, backward<double, false>, backward<float, has_pairs>},
    {map<float>, map<double>},
    join,
    {steps_of<float>, steps_of<double>},
    {share_memory<float>, share_memory<double>},
    {pack<float>, pack<double>},
    {apply<float>, apply<double>},
    {peak<float>, peak<double>},
    checksum,
    {lanes<float>, lanes<double>},
    widest,
    has_pairs,
    tiles_are_right,
};

}  // namespace TT_ISA
