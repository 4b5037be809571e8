/* The plain C interface between the kernels and whoever calls them: structures of numbers and pointers, no torch.
   library.py spells the same structures for ctypes; tt_layout() lets it check that both agree. */
#pragma once
#include <stdint.h>

#if defined(__GNUC__)
#define TT_API __attribute__((visibility("default")))
#else
#define TT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { TT_FLOAT32 = 0, TT_FLOAT64 = 1 };

/* Where a value of a tape stands. */
enum {
    TT_TEMP,  /* a slot of the tile */
    TT_Z,     /* net input, by column */
    TT_OLD,   /* state before the step */
    TT_NEW,   /* state after the step */
    TT_UNIT,  /* per-unit weight */
    TT_KEPT,  /* kept from the forward for the backward pass */
    TT_DY,    /* gradient that enters at a state's output */
    TT_DS,    /* gradient with respect to a state, carried back through time */
    TT_DZ,    /* gradient with respect to a net input, by column */
    TT_DUNIT, /* gradient with respect to a per-unit weight */
    TT_STEP,  /* lives for one step, all units of it */
    TT_CHUNK  /* lives for one chunk of steps: a factor of a matrix's gradient */
};

typedef struct { int64_t kind, index; } tt_place;
typedef struct { int64_t code, d, a, b, c; double k0, k1; } tt_instruction;
/* Instructions on values of one width, run tile by tile. Sweeps stand in the order of their stages. */
typedef struct { int64_t stage, width, first, count; } tt_sweep;
/* Between the stages: what needs all units of a row. turned: a M^T, else a M. matrix < 0: the mean over units. */
typedef struct { int64_t stage, matrix, turned, source, source_width, d, width; } tt_whole_row;

typedef struct {
    const tt_place* places;
    const tt_instruction* instructions;
    const tt_sweep* sweeps;
    const tt_whole_row* whole_rows;
    const int64_t *step_widths, *chunk_widths, *kept_offsets;
    int64_t n_places, n_sweeps, n_whole_rows, n_steps, n_chunks, n_temps, stages;
    int64_t ds_written, dz_written; /* backward: which gradients of states, of columns, the tape writes; a bit each */
} tt_program;

/* groups matrices [words, columns] in panels `width` columns wide. */
typedef struct { const void* data; int64_t words, columns, width, groups; } tt_panels;

typedef struct {
    void* out;
    const void* source;
    const int64_t* blocks; /* row blocks of the source, in the order in which they are wanted */
    int64_t n_blocks, rows, stride, source_columns, words, width, turned, source_bf16, pairs, dtype;
} tt_packing;

/* The rows of x and of every sequence: step t has rows offset[t] .. offset[t+1), never more than step t - 1.
   Columns of z: those with a part from x come first, those with a part from h last: [0, nx) and [h0, h0 + nh). */
typedef struct {
    const tt_program* program;
    const int64_t* offset;
    const int64_t* column_of; /* for each column in this order, its place in bias and db */
    int64_t T, B, D, H, P, S, n_units, C, nx, h0, nh, reverse, dtype, pairs, threads;
    const void* x;      /* [rows, D]; words under bf16 */
    const void* bias;   /* [C, H], in the cell's order */
    const tt_panels *W, *U, *matrices;
    const void* const* units;       /* n_units x [H] */
    const void* const* first;       /* S x [B, width] */
    const int64_t* state_widths;    /* S */
    void* const* sequences;         /* S x [rows, width] */
    void* const* finals;            /* S x [B, width] */
    void* kept;                     /* [rows, kept_row] */
    int64_t kept_row;
    int64_t chunk;                  /* rows that a chunk of steps should have */
    int64_t row_groups;             /* the threads stand row_groups x (threads / row_groups): rows x units */
} tt_forward_call;

typedef struct {
    tt_forward_call pass;           /* program: the backward one; finals unused */
    const void* const* dy;          /* S x [rows, width] or [width] or NULL */
    const int64_t* dy_rows;         /* S: row stride of each */
    void* const* ds;                /* S x [B, width]: in, the gradient of the last states; out, of the first */
    const tt_panels *Wt, *Ut, *turned_matrices;
    const int64_t *x_blocks, *h_blocks; /* row blocks of W and of U, by column */
    const void* x_rows;             /* x as it came, float or bf16 */
    int64_t x_bf16, truncated;
    void *dx, *dW, *dU, *db;        /* db: [C, H], in the cell's order */
    void* const* d_units;           /* n_units x [H] */
    void* const* d_matrices;
    const int64_t* matrix_shapes;   /* rows, columns of each matrix */
    const int64_t* pairs_of;        /* for each pair: matrix, left place, right place */
    int64_t n_pairs, n_matrices;
} tt_backward_call;

/* Many gradients sent back through one pass. Each row is one loss step; rows stand in the order in which they join the
   walk back, every row with its own place in each sequence. What enters and what comes out is float64. */
typedef struct {
    const tt_program* program;      /* of the linear step: kept and ds in; dz or the bases, and ds, out */
    const int64_t* column_of;
    int64_t T, B, D, H, S, C, nx, h0, nh, reverse, truncated, dtype, threads;
    int64_t bases, bases_x, base_h; /* 0, or how many; those with a part from x come first, with one from h from base_h */
    const int64_t* base_of;         /* for each column in this order, its base */
    int64_t factors;                /* where a row of kept has a column's factor [H] of its base; each base's squares follow */
    const int64_t *total_kind, *total_at; /* S: 0 in kept[n_kept + at] of the program, 1 in base `at`, 2 in ds before the step */
    int64_t rows, block, parts;     /* rows are shared out in blocks, the sequences of each in parts */
    int64_t apart;                  /* the sizes of each part stay by themselves */
    int64_t n_kept, kept_row;
    const int64_t* state_widths;    /* S */
    const int64_t* lengths;         /* B: how many steps each sequence has */
    const int64_t *loss_steps, *starts; /* rows: the step of its loss, and the one at which it joins */
    const void* kept;               /* [T, B, kept_row]: what the linear step multiplies by */
    const void* const* units;       /* likewise, the same at all steps: [H] each */
    const tt_panels *Wt, *Ut, *matrices, *turned_matrices;
    const void* const* direct;      /* NULL or S x ([T, B, width] or NULL): enters row t at step t only */
    const void* const* above;       /* NULL or S x ([rows, T, B, width] or NULL): enters at every step */
    const void* input_slope;        /* NULL or [T, B, D]: what dx is multiplied by */
    void* dx;                       /* NULL or [rows, T, B, D] */
    double* sizes;                  /* [parts, 1 + S, T, rows], zero: ||dz||, ||ds|| over the batch; in part 0 at the end */
    void* const* arrived;           /* NULL or dz [rows, T, B, C * H] and ds, S x [rows, T, B, width] */
} tt_map_call;

TT_API int tt_forward(const tt_forward_call*);
TT_API int tt_backward(const tt_backward_call*);
TT_API int tt_map(const tt_map_call*);
TT_API int tt_pack(const tt_packing*, int64_t threads);
/* rows[i] of source -> out[i], or with scatter source[i] -> rows[i] of out; `bytes` a row. */
TT_API int tt_move_rows(void* out, const void* source, const int64_t* rows, int64_t n, int64_t bytes, int64_t scatter, int64_t threads);
/* Asks for large pages: an output of many megabytes costs less to touch for the first time. */
TT_API void tt_large_pages(void* memory, int64_t bytes);
/* A checksum of a whole weight. */
TT_API uint64_t tt_checksum(const void* memory, int64_t bytes);
/* A function of the tape by its code, for tests: out[i] = f(a[i]). */
TT_API int tt_apply(int64_t code, int64_t dtype, void* out, const void* a, int64_t n);
/* Instruction sets: 0 portable, 1 AVX2, 2 AVX-512, 3 with bf16, 4 with tiles. Whether the machine runs one; the one in use. */
TT_API int tt_runs(int isa);
TT_API int tt_current(void);
/* Tiles: 0 there is a build that uses them and it runs here; 1 not built, 2 not in this processor, 3 refused by the
   operating system, 4 tried when the library was loaded, with a wrong result. */
TT_API int tt_tiles(void);
TT_API int tt_choose(int isa); /* for tests and benchmarks; returns what is in use now */
TT_API int64_t tt_lanes(int64_t dtype);
TT_API int64_t tt_panel_vectors(void);
TT_API int64_t tt_layout(int64_t which);
TT_API double tt_peak(int64_t dtype, int64_t threads, double seconds); /* multiply-adds in registers, operations a second */

#ifdef __cplusplus
}
#endif
