/* Quantising a matrix into tiles; the same choices, bit for bit, as `ops/packed.py`. */

/* The codes of 32 values, as floats; zeros where the scale is zero. */
INLINE void to_codes(const V x[2], float scale, V low, V high, V codes[2]) {
    V inverse = v_set(scale == 0.0f ? 0.0f : 1.0f / scale);
    for (int i = 0; i < 2; i++) codes[i] = v_min(high, v_max(low, v_round(v_mul(x[i], inverse))));
}

INLINE float squared_error(const V x[2], const V codes[2], float scale) {
    V e[2];
    for (int i = 0; i < 2; i++) {
        e[i] = v_sub(v_mul(codes[i], v_set(scale)), x[i]);
        e[i] = v_mul(e[i], e[i]);
    }
    return v_sum(v_add(e[0], e[1]));
}

/* What the largest magnitude of a group may become, best first where the error is the same. */
static const float INT8_STEPS[] = {127, 126, 125, 124, 123, 122, 121, 120}, INT4_STEPS[] = {-8.0f, -7.5f, -7.0f, -6.5f};

/* Return the float16 scale of a group and its codes in to[0..32). */
INLINE uint16_t pack_group(const V x[2], int64_t format, int8_t *to) {
    V low = v_set(format == INT8 ? -127.0f : -8.0f), high = v_set(format == INT8 ? 127.0f : 7.0f), codes[2];
    float values[GROUP], largest = v_largest(v_max(v_abs(x[0]), v_abs(x[1]))), least = 0.0f;
    const float *steps = format == INT8 ? INT8_STEPS : INT4_STEPS;
    int count = format == INT8 ? 8 : 4, at = 0;
    uint16_t best = 0;
    if (format == INT4) { /* with its sign: there is one more code below zero than above */
        v_store(values, x[0]), v_store(values + 16, x[1]);
        while (at < GROUP - 1 && fabsf(values[at]) != largest) at++;
        largest = values[at];
    }
    for (int i = 0; i < count; i++) {
        uint16_t half = half_of(largest / steps[i]);
        float scale = float_of_half(half), error;
        to_codes(x, scale, low, high, codes);
        error = squared_error(x, codes, scale);
        if (i == 0 || error < least) best = half, least = error;
    }
    to_codes(x, float_of_half(best), low, high, codes);
    v_store_int8(to, codes[0]), v_store_int8(to + 16, codes[1]);
    return best;
}

/* Four codes of a row as they lie: int8 plus 128, or two quads of int4 plus 8 in the halves of the bytes. */
INLINE uint32_t pack_quad(const int8_t *codes, int64_t format) {
    uint32_t low, high;
    memcpy(&low, codes, 4), memcpy(&high, codes + (format == INT8 ? 0 : GROUP / 2), 4);
    if (format == INT8) return low ^ 0x80808080u;
    return ((low & 0x0f0f0f0fu) ^ 0x08080808u) | ((high & 0x0f0f0f0fu) ^ 0x08080808u) << 4;
}

static int pack(const Rows *r, int64_t K, int64_t format, uint8_t *codes, uint16_t *scales) {
    int64_t G = groups_of(K), tiles = tiles_of(r->N), bytes = format == INT8 ? TILE * GROUP : TILE * GROUP / 2;
    int threads = num_threads(r->threads, r->N * K);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t g = 0; g < G; g++) {
            uint8_t *to = codes + (tile * G + g) * bytes;
            for (int64_t row = 0; row < TILE; row++) {
                int8_t own[GROUP];
                V x[2] = {v_set(0.0f), v_set(0.0f)};
                if (tile * TILE + row < r->N) {
                    const float *from = r->x + (tile * TILE + row) * K + g * GROUP;
                    int64_t left = K - g * GROUP;
                    x[0] = v_load_up_to(from, left);
                    if (left > 16) x[1] = v_load_up_to(from + 16, left - 16);
                }
                scales[(tile * G + g) * TILE + row] = pack_group(x, format, own);
                for (int quad = 0; quad < (format == INT8 ? 8 : 4); quad++) {
                    uint32_t four = pack_quad(own + 4 * quad, format);
                    memcpy(to + (quad * TILE + row) * 4, &four, 4);
                }
            }
        }
    return 0;
}
