/* Activations as int8, and a tile of a matrix times some rows of activations. */

/* Rows to multiply with: floats for matrices of values, codes for packed ones. Row i begins i * columns further on. */
typedef struct {
    const float *values;
    const int8_t *codes;
    const float *scales;
    const int32_t *sums;
    int64_t columns; /* padded to whole groups where they are codes */
    const float *together; /* the values of the rows that are multiplied next, as `side_by_side` lays them, or NULL */
} Input;

INLINE int64_t groups_of(int64_t columns) { return (columns + GROUP - 1) / GROUP; }
INLINE int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }

INLINE int holds_values(const Matrix *m) { return m->format == FLOAT32 || m->format == BFLOAT16; }

/* Bytes of a packed tile, and of as many values, which are not padded, in a matrix that holds those. */
INLINE int64_t tile_bytes(const Matrix *m) {
    int halves = m->format == INT4 ? 1 : m->format == INT8 ? 2 : m->format == BFLOAT16 ? 4 : 8;
    return groups_of(m->columns) * TILE * GROUP / 2 * halves;
}

/* Where value i lies; sixteen from there, as floats; n < 16, zeros behind them. */
INLINE const void *value_at(int64_t format, const void *w, int64_t i) {
    return format == BFLOAT16 ? (const void *)((const uint16_t *)w + i) : (const float *)w + i;
}
INLINE V values_at(int64_t format, const void *w, int64_t i) {
    return format == BFLOAT16 ? v_bfloat(value_at(format, w, i)) : v_load(value_at(format, w, i));
}
INLINE V values_part_at(int64_t format, const void *w, int64_t i, int64_t n) {
    return format == BFLOAT16 ? v_bfloat_part(value_at(format, w, i), n) : v_load_part(value_at(format, w, i), n);
}

/* The matrix that begins `tiles` tiles (of values: `rows` rows) further on in a stack. */
INLINE Matrix matrix_behind(const Matrix *m, int64_t tiles, int64_t rows) {
    Matrix r = *m;
    if (holds_values(m)) {
        r.codes = value_at(m->format, m->codes, rows * m->columns);
        return r;
    }
    r.codes = (const uint8_t *)m->codes + tiles * tile_bytes(m);
    r.scales = m->scales + tiles * groups_of(m->columns) * TILE;
    return r;
}

/* Bytes of n quantised rows of K columns, and where their parts lie: codes, scales, sums. */
INLINE int64_t quantized_bytes(int64_t n, int64_t K) { return n * groups_of(K) * (GROUP + 8); }
INLINE Input quantized_input(void *memory, int64_t n, int64_t K) {
    int64_t G = groups_of(K);
    float *scales = (float *)((int8_t *)memory + n * G * GROUP);
    return (Input){NULL, memory, scales, (int32_t *)(scales + n * G), G * GROUP, NULL};
}

/* Quantise 32 floats: scale is the largest magnitude over 127. What is not finite makes the scale not a number. */
INLINE void quantize_group(V a, V b, int8_t *codes, float *scale, int32_t *sum) {
    V poison = v_mul(v_add(a, b), v_set(0.0f));
    float most = v_largest(v_max(v_abs(a), v_abs(b)));
    float inverse = most > 0 ? 127.0f / most : 0.0f;
    int32_t total = 0;
    if (inverse > 3e38f) inverse = 0.0f; /* so small that its inverse overflows: zeros */
    v_store_int8(codes, v_mul(a, v_set(inverse)));
    v_store_int8(codes + 16, v_mul(b, v_set(inverse)));
    for (int i = 0; i < GROUP; i++) total += codes[i];
    *scale = most / 127.0f + v_sum(poison);
    *sum = total;
}

INLINE void quantize_row(const float *x, int64_t K, const Input *to, int64_t row) {
    int64_t G = groups_of(K), i = row * G;
    for (int64_t g = 0; g < G; g++, i++) {
        int64_t left = K - g * GROUP;
        V a = v_load_up_to(x + g * GROUP, left);
        V b = left > 16 ? v_load_up_to(x + g * GROUP + 16, left - 16) : v_set(0.0f);
        quantize_group(a, b, (int8_t *)to->codes + i * GROUP, (float *)to->scales + i, (int32_t *)to->sums + i);
    }
}

/* Software prefetching was tried, 0.5 to 8 KiB ahead: no faster on a Zen 4, whose own finds one stream per tile. */
INLINE void tile_int8(const uint8_t *c, const uint16_t *s, int64_t G, const int8_t *const *x, const Scales *xs, int T, V *out) {
    UNROLL for (int t = 0; t < T; t++) out[t] = v_set(0.0f);
    for (int64_t g = 0; g < G; g++, c += TILE * GROUP, s += TILE) {
        dot_int8(c, v_half(s), x, g, xs, T, out);
    }
}
INLINE void tile_int4(const uint8_t *c, const uint16_t *s, int64_t G, const int8_t *const *x, const Scales *xs, int T, V *out) {
    UNROLL for (int t = 0; t < T; t++) out[t] = v_set(0.0f);
    for (int64_t g = 0; g < G; g++, c += TILE * GROUP / 2, s += TILE) {
        dot_int4(c, v_half(s), x, g, xs, T, out);
    }
}

/* A row or two of activations leave all to the processor's own prefetcher, which wants one rising stream: two lines of
 * (256, 2048) bfloat16 at a time took 87 us from memory on a core of a Zen 4, one 47, of float32 83. With more rows, a
 * tile of weights is fetched while the one before is used, and so many columns of the activations as stay in the
 * nearest cache lie side by side, T vectors for each 16 columns: rows a power of two apart would push each other out. */
enum { COLUMNS_TOGETHER = 512, FEW = 2 };

INLINE const float *side_by_side(const float *const *x, int T, int64_t from, int64_t to, float *room) {
    for (int64_t i = from; i < to; i += 16)
        UNROLL for (int t = 0; t < T; t++) v_store(room + (i - from) * T + 16 * t, v_load_up_to(x[t] + i, to - i));
    return room;
}

/* `in` with few columns laid side by side once, for many tiles that are multiplied by the same rows. */
INLINE Input laid(const Input *in, const int64_t *rows, int T, float *room) {
    const float *x[TOKENS];
    Input out = *in;
    if (!in->values || T < 2 || in->columns > COLUMNS_TOGETHER) return out;
    for (int t = 0; t < T; t++) x[t] = in->values + rows[t] * in->columns;
    out.together = side_by_side(x, T, 0, in->columns, room);
    return out;
}

/* `lines` rows of a tile, n columns of K, times T rows that lie side by side; added to `sums`, or `fresh`. */
INLINE void rows_values(int64_t format, const void *w, int64_t K, int64_t n, const float *x, int T, int lines, int64_t ahead,
                        int fresh, V sums[][TOKENS]) {
    V s[2][TOKENS];
    UNROLL for (int j = 0; j < lines; j++) UNROLL for (int t = 0; t < T; t++) s[j][t] = fresh ? v_set(0.0f) : sums[j][t];
    int64_t i = 0;
    for (; i + 16 <= n; i += 16, x += 16 * T) {
        V weights[2];
        if (T > FEW) UNROLL for (int j = 0; j < lines; j++) __builtin_prefetch(value_at(format, w, j * K + i + ahead), 0, 2);
        UNROLL for (int j = 0; j < lines; j++) weights[j] = values_at(format, w, j * K + i);
        UNROLL for (int t = 0; t < T; t++) {
            V values = v_held(v_load(x + 16 * t));
            UNROLL for (int j = 0; j < lines; j++) s[j][t] = v_fma(weights[j], values, s[j][t]);
        }
    }
    if (i < n)
        for (int t = 0; t < T; t++)
            for (int j = 0; j < lines; j++) {
                V values = v_load_part(x + 16 * t, n - i);
                s[j][t] = v_fma(values_part_at(format, w, j * K + i, n - i), values, s[j][t]);
            }
    UNROLL for (int j = 0; j < lines; j++) UNROLL for (int t = 0; t < T; t++) sums[j][t] = s[j][t];
}

/* A tile of values times T rows: 16 partial sums for each product, added up at the end, as `dot` does. */
INLINE void tile_values(int64_t format, const void *w, int64_t rows, int64_t K, const float *const *x, const float *laid, int T,
                        V *out) {
    float room[COLUMNS_TOGETHER * TOKENS];
    V sums[TILE][TOKENS];
    const int lines = T > FEW ? 2 : 1;
    rows = rows < TILE ? rows : TILE;
    for (int64_t r = rows; r < TILE; r++) UNROLL for (int t = 0; t < T; t++) sums[r][t] = v_set(0.0f);
    const int64_t together = T > 1 ? COLUMNS_TOGETHER : K;
    for (int64_t from = 0; from < K; from += together) {
        int64_t to = from + together < K ? from + together : K, r = 0;
        int64_t ahead = to < K ? together : TILE * K - from; /* the next columns of these rows, or the next tile's first */
        const float *values = T < 2 ? x[0] : laid ? laid : side_by_side(x, T, from, to, room);
        for (; r + lines <= rows; r += lines)
            rows_values(format, value_at(format, w, r * K + from), K, to - from, values, T, lines, ahead, from == 0, sums + r);
        if (r < rows)
            rows_values(format, value_at(format, w, r * K + from), K, to - from, values, T, 1, ahead, from == 0, sums + r);
    }
    UNROLL for (int t = 0; t < T; t++) out[t] = v_sums(&sums[0][t], TOKENS);
}

/* Multiply tile `tile` of m by T <= TOKENS rows: out[t] are the products of its 16 rows, zeros beyond the matrix. */
INLINE void tile_times(const Matrix *m, int64_t tile, const Input *in, const int64_t *rows, int T, float out[][TILE]) {
    int64_t G = groups_of(m->columns);
    if (holds_values(m)) {
        const float *x[TOKENS];
        const void *w = value_at(m->format, m->codes, tile * TILE * m->columns);
        int64_t left = m->rows - tile * TILE;
        V products[TOKENS];
        UNROLL for (int t = 0; t < T; t++) x[t] = in->values + rows[t] * in->columns;
        if (m->format == FLOAT32)
            tile_values(FLOAT32, w, left, m->columns, x, in->together, T, products);
        else
            tile_values(BFLOAT16, w, left, m->columns, x, in->together, T, products);
        UNROLL for (int t = 0; t < T; t++) v_store(out[t], products[t]);
        return;
    }
    const int8_t *x[TOKENS];
    Scales scales[TOKENS];
    V sums[TOKENS];
    UNROLL for (int t = 0; t < T; t++) {
        x[t] = in->codes + rows[t] * in->columns;
        scales[t] = (Scales){in->scales + rows[t] * G, in->sums + rows[t] * G};
    }
    const uint8_t *codes = (const uint8_t *)m->codes + tile * tile_bytes(m);
    const uint16_t *s = m->scales + tile * G * TILE;
    if (m->format == INT8)
        tile_int8(codes, s, G, x, scales, T, sums);
    else
        tile_int4(codes, s, G, x, scales, T, sums);
    UNROLL for (int t = 0; t < T; t++) v_store(out[t], sums[t]);
}

/* The same for a number of rows that the compiler does not know. */
static void times(const Matrix *m, int64_t tile, const Input *in, const int64_t *rows, int T, float out[][TILE]) {
    switch (T) {
    case 1: tile_times(m, tile, in, rows, 1, out); return;
    case 2: tile_times(m, tile, in, rows, 2, out); return;
    case 3: tile_times(m, tile, in, rows, 3, out); return;
    case 4: tile_times(m, tile, in, rows, 4, out); return;
#ifdef LEVEL_AVX512
    case 5: tile_times(m, tile, in, rows, 5, out); return;
    case 6: tile_times(m, tile, in, rows, 6, out); return;
    case 7: tile_times(m, tile, in, rows, 7, out); return;
    default: tile_times(m, tile, in, rows, 8, out); return;
#endif
    }
}

/* Numbers of threads and sizes of tasks. Results never depend on them.
 *
 * Few rows are bound by memory, which is slow to come to a place it was not at: two Zen 4 cores that read 51 GB/s in
 * pieces of 4 MiB read 25, 36, 40 and 43 in pieces of 32, 64, 128 and 256 KiB (benchmarks/read_pieces.py). So a task takes
 * a long piece. With many rows it takes no more than stays in the cache while they use it.
 */
enum { TASK_BYTES = 1 << 18 };
enum { WORTH_A_THREAD = 1 << 17 }; /* weights times rows; below, waking threads costs more than it gains */

INLINE int num_threads(int64_t asked, int64_t work) {
    int64_t useful = work / WORTH_A_THREAD;
    return (int)(useful < 2 ? 1 : useful < asked ? useful : asked);
}
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t at_least_one(int64_t a) { return a < 1 ? 1 : a; }
/* Tiles of m that are one task of `rows` rows; at most `most` where they are many. */
INLINE int64_t task_tiles(const Matrix *m, int64_t rows, int64_t threads, int64_t most) {
    int few = rows <= TOKENS;
    int64_t share = tiles_of(m->rows) / (threads * (few ? 2 : 4)), kept = TASK_BYTES * (few ? 2 : 1) / tile_bytes(m);
    return at_least_one(smaller(few ? kept : smaller(kept, most), share));
}
/* Take the next of `total` tiles or groups, none beyond a multiple of `each`: at most `most`, and fewer towards the end,
 * but LEAST where each thread gets as many. Return the first, or `total` where none is left. */
enum { LEAST = 8 };
static int64_t claim(int64_t *next, int64_t total, int64_t each, int64_t most, int threads, int64_t *end) {
    int64_t from = __atomic_load_n(next, __ATOMIC_RELAXED), least = smaller(LEAST, at_least_one(total / threads));
    do {
        if (from >= total) return total;
        int64_t share = (total - from) / (2 * threads), size = smaller(most, share > least ? share : least);
        *end = smaller(smaller(from + size, total), (from / each + 1) * each);
    } while (!__atomic_compare_exchange_n(next, &from, *end, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return from;
}
