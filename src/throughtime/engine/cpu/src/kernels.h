// The table of one instruction set's kernels; the tables are chosen from in api.cpp.
#pragma once
#include "interface.h"

struct Kernels {
    // By number type: float32, float64, and float32 with products in bf16.
    void (*forward[3])(const tt_forward_call&, int me, int threads, void* lines, void* const* steps);
    void (*backward[3])(const tt_backward_call&, int me, int threads, void* lines, const void* shared);
    void (*map[2])(const tt_map_call&, int64_t* next);
    void (*join)(const tt_map_call&, int64_t from, int64_t to);
    void** (*steps_of[2])(const tt_forward_call&);
    void* (*share_memory[2])(const tt_backward_call&);
    void (*pack[2])(const tt_packing&, long from, long to);
    void (*apply[2])(int64_t code, void* out, const void* a, int64_t n);
    double (*peak[2])(int64_t rounds);
    uint64_t (*checksum)(const void* memory, int64_t bytes);
    int lanes[2];
    int panel_vectors;
    bool pairs;
    bool (*tiles_are_right)();  // where there are tiles: whether they give what they should
};
