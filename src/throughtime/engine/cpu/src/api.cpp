// The C interface: the instruction set is chosen here, and the threads are torch's (the OpenMP runtime is one).
#include <omp.h>
#include <time.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "phases.h"
#include "scratch.h"

#ifdef TT_PHASES
PhaseClock phase_clocks[64];
#endif

namespace portable { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512_bf16 { extern const Kernels kernels; }
#if defined(TT_HAS_TILES)
namespace amx_bf16 { extern const Kernels kernels; }
#endif
#endif

namespace {

const Kernels* table(int isa) {
#if defined(__x86_64__)
    static const Kernels* const all[] = {&portable::kernels, &avx2::kernels, &avx512::kernels, &avx512_bf16::kernels,
#if defined(TT_HAS_TILES)
                                         &amx_bf16::kernels,
#endif
    };
    return all[isa];
#else
    (void)isa;
    return &portable::kernels;
#endif
}

enum { PORTABLE, AVX2, AVX512, AVX512_BF16, AMX_BF16, n_isas };

// The widest set of vectors that the machine runs; tiles are apart.
int widest_vectors() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq"))
        return AVX2;
    return __builtin_cpu_supports("avx512bf16") ? AVX512_BF16 : AVX512;
#else
    return PORTABLE;
#endif
}

#if defined(TT_HAS_TILES) && !defined(TT_EMULATED_ON)
// The processor has tiles with bf16 products, and the operating system saves their configuration and their data.
bool processor_has_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // OSXSAVE: XGETBV may be asked
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (a >> 17 & 3) == 3;
}

// Linux gives a process the 8 KiB that a thread's tiles take once it has asked for them.
bool system_gives_tiles() {
#if defined(__linux__)
    constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}
#endif

// What the state of the tiles is; the same numbers stand in library.py.
enum { TILES_USED, TILES_NOT_BUILT, TILES_NOT_THERE, TILES_REFUSED, TILES_WRONG };

int find_tiles() {
#if defined(TT_HAS_TILES)
#if defined(TT_EMULATED_ON)
    if (widest_vectors() < TT_EMULATED_ON) return TILES_NOT_THERE;
#else
    if (widest_vectors() < AVX512_BF16 || !processor_has_tiles()) return TILES_NOT_THERE;
    if (!system_gives_tiles()) return TILES_REFUSED;
#endif
    return amx_bf16::kernels.tiles_are_right() ? TILES_USED : TILES_WRONG;
#else
    return TILES_NOT_BUILT;
#endif
}

const int tiles = find_tiles();

bool runs(int isa) { return isa == AMX_BF16 ? tiles == TILES_USED : isa >= 0 && isa <= widest_vectors(); }

int current = runs(AMX_BF16) ? AMX_BF16 : widest_vectors();

int kind_of(const tt_forward_call& c) { return c.pairs ? 2 : (int)c.dtype; }

// One cache line for each thread's count, for the barriers of the row groups and for the one of all threads.
void* lines_for(int64_t threads) {
    void* lines = scratch_take(2 * 64 * threads);
    std::memset(lines, 0, 2 * 64 * threads);
    return lines;
}

struct ScratchInUse {
    ~ScratchInUse() { scratch_reset(); }
};

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

}  // namespace

extern "C" {

int tt_forward(const tt_forward_call* c) {
    const Kernels& k = *table(current);
    if (c->pairs && !k.pairs) return 1;
    ScratchInUse scratch;
    void* lines = lines_for(c->threads);
    void** steps = k.steps_of[c->dtype](*c);
    if (c->threads == 1) {
        k.forward[kind_of(*c)](*c, 0, 1, lines, steps);
        return 0;
    }
#pragma omp parallel num_threads((int)c->threads)
    {
        const int me = omp_get_thread_num();
        k.forward[kind_of(*c)](*c, me, omp_get_num_threads(), lines, steps);
        if (me) scratch_reset();
    }
    return 0;
}

int tt_backward(const tt_backward_call* b) {
    const tt_forward_call& c = b->pass;
    const Kernels& k = *table(current);
    if (c.pairs && !k.pairs) return 1;
    ScratchInUse scratch;
    void* lines = lines_for(c.threads);
    const void* shared = k.share_memory[c.dtype](*b);
    if (c.threads == 1) {
        k.backward[kind_of(c)](*b, 0, 1, lines, shared);
        return 0;
    }
#pragma omp parallel num_threads((int)c.threads)
    {
        const int me = omp_get_thread_num();
        k.backward[kind_of(c)](*b, me, omp_get_num_threads(), lines, shared);
        if (me) scratch_reset();
    }
    return 0;
}

int tt_map(const tt_map_call* c) {
    const Kernels& k = *table(current);
    const int64_t numbers = (1 + c->S) * c->rows * c->T;
    int64_t next = 0;
    if (c->threads == 1) {
        ScratchInUse scratch;
        k.map[c->dtype](*c, &next);
        k.join(*c, 0, numbers);
        return 0;
    }
#pragma omp parallel num_threads((int)c->threads)
    {
        ScratchInUse scratch;
        k.map[c->dtype](*c, &next);
#pragma omp barrier
        const int64_t me = omp_get_thread_num(), n = omp_get_num_threads();
        k.join(*c, numbers * me / n, numbers * (me + 1) / n);
    }
    return 0;
}

int tt_pack(const tt_packing* p, int64_t threads) {
    const Kernels& k = *table(current);
    const int64_t columns = p->turned ? p->rows : p->source_columns, groups = p->turned ? p->n_blocks : 1;
    const int64_t panels = groups * ((columns + p->width - 1) / p->width);
    if (threads == 1 || panels * p->words * p->width < 65536) {
        k.pack[p->dtype](*p, 0, panels);
        return 0;
    }
#pragma omp parallel for num_threads((int)threads)
    for (int64_t q = 0; q < panels; q++) k.pack[p->dtype](*p, q, q + 1);
    return 0;
}

int tt_move_rows(void* out, const void* source, const int64_t* rows, int64_t n, int64_t bytes, int64_t scatter, int64_t threads) {
    char* d = (char*)out;
    const char* s = (const char*)source;
    if (!bytes) return 0;  // memory that holds nothing may have no address
#pragma omp parallel for num_threads((int)threads) if (threads > 1 && n * bytes > 65536)
    for (int64_t i = 0; i < n; i++) {
        if (scatter) std::memcpy(d + rows[i] * bytes, s + i * bytes, bytes);
        else std::memcpy(d + i * bytes, s + rows[i] * bytes, bytes);
    }
    return 0;
}

void tt_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, from = ((uintptr_t)memory + page - 1) / page * page, to = ((uintptr_t)memory + bytes) / page * page;
    if (to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

uint64_t tt_checksum(const void* memory, int64_t bytes) { return table(current)->checksum(memory, bytes); }

int tt_apply(int64_t code, int64_t dtype, void* out, const void* a, int64_t n) {
    table(current)->apply[dtype](code, out, a, n);
    return 0;
}

int tt_runs(int isa) { return runs(isa); }
int tt_tiles(void) { return tiles; }
int tt_current(void) { return current; }
int tt_choose(int isa) {
    if (runs(isa)) current = isa;
    return current;
}
int64_t tt_lanes(int64_t dtype) { return table(current)->lanes[dtype]; }
int64_t tt_panel_vectors(void) { return table(current)->panel_vectors; }

int64_t tt_layout(int64_t which) {
    const int64_t sizes[] = {sizeof(tt_program), sizeof(tt_panels), sizeof(tt_packing), sizeof(tt_forward_call), sizeof(tt_backward_call),
                             sizeof(tt_map_call)};
    return which >= 0 && which < 6 ? sizes[which] : -1;
}

#ifdef TT_PHASES
// Ticks of the processor's clock that a thread has spent in a phase; only in this build.
TT_API int64_t tt_phase(int64_t thread, int64_t phase) { return phase_clocks[thread & 63].ticks[phase]; }
#endif

double tt_peak(int64_t dtype, int64_t threads, double seconds) {
    double total = 0;
    const Kernels& k = *table(current);
#pragma omp parallel num_threads((int)threads) reduction(+ : total)
    {
        double operations = 0;
        const double start = now();
        double past = 0;
        while (past < seconds) {
            operations += k.peak[dtype](100000);
            past = now() - start;
        }
        total += operations / past;
    }
    return total;
}

}  // extern "C"
