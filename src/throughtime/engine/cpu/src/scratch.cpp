// Scratch memory, one block a thread, kept from call to call so that no call pays for fresh pages.
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "scratch.h"

// Under the address sanitizer what nobody has taken is out of bounds, the lines between two takers too.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#endif

namespace {

constexpr size_t line = 64, page = 2 << 20, kept_at_most = 64 << 20;

struct Block {
    char* memory;
    size_t size;
    Block* next;
};

struct Scratch {
    Block* blocks = nullptr;  // the newest first
    size_t used = 0, total = 0;

    void grow(size_t bytes) {
        const size_t size = (bytes + page - 1) / page * page;
        void* memory = nullptr;
        if (posix_memalign(&memory, page, size)) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        madvise(memory, size, MADV_HUGEPAGE);
#endif
        ASAN_POISON_MEMORY_REGION(memory, size);
        blocks = new Block{(char*)memory, size, blocks};
        used = 0;
    }

    void release() {
        while (blocks) {
            Block* next = blocks->next;
            ASAN_UNPOISON_MEMORY_REGION(blocks->memory, blocks->size);
            std::free(blocks->memory);
            delete blocks;
            blocks = next;
        }
        used = total = 0;
    }

    ~Scratch() { release(); }
};

thread_local Scratch scratch;

}  // namespace

void* scratch_take(size_t bytes) {
    // Lines more than asked for: rows a power of two apart fall on the same cache set.
    const size_t wanted = bytes;
    bytes = (bytes + line - 1) / line * line + 2 * line;
    Scratch& s = scratch;
    if (!s.blocks || s.used + bytes > s.blocks->size) s.grow(bytes > page ? bytes : page);
    void* p = s.blocks->memory + s.used;
    ASAN_UNPOISON_MEMORY_REGION(p, wanted);
    s.used += bytes;
    s.total += bytes;
    return p;
}

void scratch_reset() {
    Scratch& s = scratch;
    const size_t total = s.total;
    if (total > kept_at_most) {
        s.release();
    } else if (s.blocks && s.blocks->next) {  // next time in one piece
        s.release();
        s.grow(total);
    } else if (s.blocks) {
        ASAN_POISON_MEMORY_REGION(s.blocks->memory, s.blocks->size);
    }
    s.used = s.total = 0;
}
