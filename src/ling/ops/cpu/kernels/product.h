/* Activations as int8, and a tile of a matrix times some rows of activations. */

/* Rows to multiply with: floats for FLOAT32 matrices, codes for packed ones. Row i begins i * columns further on. */
typedef struct {
    const float *values;
    const int8_t *codes;
    const float *scales;
    const int32_t *sums;
    int64_t columns; /* padded to whole groups where they are codes */
} Input;

INLINE int64_t groups_of(int64_t columns) { return (columns + GROUP - 1) / GROUP; }
INLINE int64_t tiles_of(int64_t rows) { return (rows + TILE - 1) / TILE; }

INLINE int64_t tile_bytes(const Matrix *m) { return groups_of(m->columns) * TILE * GROUP / (m->format == INT4 ? 2 : 1); }

/* The matrix that begins `tiles` tiles (FLOAT32: `rows` rows) further on in a stack. */
INLINE Matrix matrix_behind(const Matrix *m, int64_t tiles, int64_t rows) {
    Matrix r = *m;
    if (m->format == FLOAT32) {
        r.codes = (const float *)m->codes + rows * m->columns;
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
    return (Input){NULL, memory, scales, (int32_t *)(scales + n * G), G * GROUP};
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

/* Two rows of floats at a time times T rows: 16 partial sums each, added up at the end, as `dot` does. */
INLINE void tile_float32(const float *w, int64_t rows, int64_t K, const float *const *x, int T, float out[][TILE]) {
    for (int64_t r = 0; r < TILE; r += 2) {
        if (r >= rows) {
            for (int t = 0; t < T; t++) out[t][r] = out[t][r + 1] = 0.0f;
            continue;
        }
        const float *first = w + r * K, *second = r + 1 < rows ? first + K : first;
        V a[TOKENS], b[TOKENS];
        UNROLL for (int t = 0; t < T; t++) a[t] = b[t] = v_set(0.0f);
        int64_t i = 0;
        for (; i + 16 <= K; i += 16) {
            V wa = v_load(first + i), wb = v_load(second + i);
            UNROLL for (int t = 0; t < T; t++) {
                V xi = v_load(x[t] + i);
                a[t] = v_fma(wa, xi, a[t]), b[t] = v_fma(wb, xi, b[t]);
            }
        }
        if (i < K)
            for (int t = 0; t < T; t++) {
                V xi = v_load_part(x[t] + i, K - i);
                a[t] = v_fma(v_load_part(first + i, K - i), xi, a[t]);
                b[t] = v_fma(v_load_part(second + i, K - i), xi, b[t]);
            }
        UNROLL for (int t = 0; t < T; t++) {
            out[t][r] = v_sum(a[t]);
            out[t][r + 1] = r + 1 < rows ? v_sum(b[t]) : 0.0f;
        }
    }
}

/* Multiply tile `tile` of m by T <= TOKENS rows: out[t] are the products of its 16 rows, zeros beyond the matrix. */
INLINE void tile_times(const Matrix *m, int64_t tile, const Input *in, const int64_t *rows, int T, float out[][TILE]) {
    int64_t G = groups_of(m->columns);
    if (m->format == FLOAT32) {
        const float *x[TOKENS], *w = (const float *)m->codes + tile * TILE * m->columns;
        UNROLL for (int t = 0; t < T; t++) x[t] = in->values + rows[t] * in->columns;
        tile_float32(w, m->rows - tile * TILE, m->columns, x, T, out);
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

/* Numbers of threads and sizes of tasks. Results never depend on them. */
enum { WORTH_A_THREAD = 1 << 17 }; /* weights times rows; below, waking threads costs more than it gains */

INLINE int num_threads(int64_t asked, int64_t work) {
    int64_t useful = work / WORTH_A_THREAD;
    return (int)(useful < 2 ? 1 : useful < asked ? useful : asked);
}
INLINE int64_t task_tiles(int64_t tiles, int64_t threads, int64_t most) {
    int64_t size = tiles / (threads * 4);
    return size < 1 ? 1 : size > most ? most : size;
}
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
