/* What Python hands over, and what each instruction set provides.
 *
 * One order of operations: every output element is computed by the same operations in the same order, whatever the
 * number of rows, threads or sequences beside it, and on every instruction set that has a fused multiply-add. Where a
 * sum is taken over lanes, the lanes are always 16 and are added up as a tree; what lies beyond the end is zero.
 *
 * Layout of a packed matrix of M rows and K columns: tiles of 16 rows, groups of 32 columns. A tile's groups follow
 * each other; within a group the 32 columns are 8 quads, and a quad holds 4 columns of each of the 16 rows:
 *
 *     int8   codes[tile][group][quad 0..7][row 0..15][column 0..3]    a byte each, value (byte - 128) * scale
 *     int4   codes[tile][group][quad 0..3][row 0..15][column 0..3]    low nibble: this quad; high: quad + 4; minus 8
 *            scales[tile][group][row 0..15]                           float16
 *
 * A quad of 16 rows is what one integer dot instruction multiplies by 4 activations, so neither sums over lanes nor
 * moves between them are needed, and a tile is read as one stream.
 */
#ifndef LING_KERNELS_H
#define LING_KERNELS_H

#include <stdint.h>

enum { TILE = 16, GROUP = 32 };
/* BFLOAT16 is multiplied as FLOAT32 is, each value widened as it is read. */
enum { FLOAT32 = 0, INT8 = 1, INT4 = 2, BFLOAT16 = 3, NUM_FORMATS };
enum { HELD_FLOAT32 = 0, HELD_FLOAT16 = 1, HELD_BFLOAT16 = 2, HELD_E4M3 = 3 }; /* what a cache holds */

/* A matrix, or a stack of them that each begin with a tile of their own. */
typedef struct {
    const void *codes;      /* tiles as above; for FLOAT32 and BFLOAT16 (rows, columns) values */
    const uint16_t *scales; /* NULL for those */
    int64_t format;
    int64_t rows, columns;
} Matrix;

/* Consecutive or scattered rows of floats that are to be multiplied. */
typedef struct {
    const float *x; /* (N, H) */
    float *y;       /* (N, M) */
    int64_t N;
    int64_t threads;
} Rows;

typedef struct {
    Matrix gate; /* (F, H) */
    Matrix up;   /* (F, H) */
    Matrix down; /* (H, F) */
} Mlp;

typedef struct {
    Matrix router;          /* (E, H) FLOAT32 or BFLOAT16 */
    const float *bias;      /* (E,) or NULL: steers the choice alone */
    Matrix gate_up;         /* E times F gate rows, then F up rows; rows is F */
    Matrix down;            /* E times (H, F) */
    Mlp shared;             /* down.codes NULL: there is none */
    int64_t E, k, n_group, topk_group;
    double scaling;
} Moe;

/* Where the tokens went. */
typedef struct {
    float *logits;   /* (N, E) */
    int64_t *ids;    /* (N, k) best first */
    float *weights;  /* (N, k) */
    int64_t *counts; /* (E,) */
} Routed;

typedef struct {
    Matrix projection;          /* ((A + 2K) * D, H) */
    const float *bias;          /* or NULL */
    const float *query_norm;    /* (D,) or NULL: no norm */
    const float *key_norm;
    int64_t A, K, D, rotated;
    double eps;
} Heads;

typedef struct {
    void *keys, *values;        /* (blocks, P, K, D) of `kind` */
    const float *k, *v;         /* (N, K, D) of the new rows, to be written first; NULL: they are there */
    const int64_t *slots;       /* (N,) where they go: block * P + place in it */
    const int64_t *tables;      /* (B, T) */
    const int64_t *spans;       /* (B, 3): new rows, tokens held, the first that is seen */
    int64_t B, T, P, A, K, D;
    int64_t kind;
    float *key_scales, *value_scales; /* (blocks, P, K) of codes, what they are multiplied by */
} Paged;

typedef struct {
    const float *input_norm, *post_norm; /* (H,) */
    Heads heads;
    Matrix dense; /* (H, A * D) */
    const float *dense_bias;
    Paged cache; /* keys, values and how they lie; what a step brings is filled in for it */
    Moe moe;     /* E 0: the layer is dense */
    Mlp mlp;
} Layer;

typedef struct {
    const float *embedding_norm, *hidden_norm; /* (H,) of an MTP layer */
    Matrix join;                               /* (H, 2H) of one; codes NULL: these are main layers */
    const Layer *layers;
    int64_t num_layers, H;
    const float *final_norm;
    double eps;
    const void *embedding;                     /* (V, H) of `kind` */
    int64_t V, kind;
    const float *cos, *sin;                    /* (positions, rotated / 2) */
    int64_t positions, rotated;
    int64_t lag;                               /* of a row's position behind its slot: 1 in an MTP layer */
} Stack;

/* What one step brings. */
typedef struct {
    const float *hidden;                    /* (N, H) that an MTP layer joins with embeddings */
    const int64_t *tokens;                  /* (N,) */
    const int64_t *tables, *spans;          /* as in Paged */
    int64_t B, T;
} Step;

/* What tokens are chosen by: greedily where the temperature is 0, otherwise with noise that is a function of the key. */
typedef struct {
    const float *temperatures; /* (N,) */
    const uint64_t *keys;      /* (N,) */
} Chance;

/* A matrix in half of its bytes, for a first look (shortlist.h). */
typedef struct {
    const uint8_t *codes;  /* tiles as of int4 */
    const uint8_t *dither; /* a value for each column, whole groups of them */
} Sketch;

/* Which logits of each row are wanted: the largest ones, or those that its noise may choose. */
typedef struct {
    const int64_t *ranks; /* (N,) how many of the largest, at most MOST_RANKED; 0: what the noise may choose */
    Chance chance;        /* of the rows with 0 */
    int64_t *read_again;  /* counts tiles of the matrix itself that were multiplied */
} Wanted;

/* What an MTP layer is to propose behind the first `count` sequences of a step. */
typedef struct {
    const Matrix *head;
    const Sketch *sketch; /* of the head, or NULL */
    const float *temperatures; /* (count,) */
    const uint64_t *keys;      /* (most, count) */
    int64_t count, most;
    int64_t *read_again;
} Drafts;

/* All return 0, or 1 where memory ran out, 2 where what came out is not finite, 3 where a token or position is none. */
typedef struct {
    const char *name;
    int (*linear)(const Rows *, const Matrix *, const float *bias);
    int (*mlp)(const Rows *, const Mlp *);
    int (*moe)(const Rows *, const Moe *, const Routed *);
    int (*rms_norm)(const Rows *, const float *weight, int64_t H, double eps);
    int (*heads)(const Rows *, const Heads *, const float *cos, const float *sin, float *q, float *k, float *v);
    int (*attend)(const Rows *, const Paged *);
    int (*stack)(const Rows *, const Stack *, const Step *);
    int (*choose)(const Rows *, int64_t V, const Chance *, int64_t *chosen);
    int (*sketch)(const Matrix *, int64_t threads, const uint8_t *dither, uint8_t *codes);
    int (*shortlist)(const Rows *, const Matrix *, const Sketch *, const Wanted *);
    int (*propose)(const Rows *, const Stack *, const Step *, const Drafts *, int64_t *chosen);
    int (*pack)(const Rows *, int64_t K, int64_t format, uint8_t *codes, uint16_t *scales);
} Level;

/* Return memory of this thread that lasts until its next call for the same slot; NULL where there is none. */
void *ling_scratch(int slot, int64_t bytes);

#endif
