/* Keys and values as a cache holds them: read as sixteen floats at a time, written rounded once. */

INLINE int64_t held_bytes(int64_t kind) { return kind == HELD_FLOAT32 ? 4 : kind == HELD_E4M3 ? 1 : 2; }

/* An E4M3 code, moved to where a float16 has its exponent, is a float16: of the value over this. Exact, subnormals too. */
#define E4M3_UNIT 256.0f
#define E4M3_MOST 448.0f

#if defined LEVEL_AVX512
INLINE V v_of_halves(__m256i halves) { return _mm512_cvtph_ps(halves); }
#elif defined LEVEL_AVX2
INLINE V v_of_halves(__m256i halves) {
    return (V){_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
#endif

#if defined LEVEL_AVX512 || defined LEVEL_AVX2
INLINE V v_e4m3(const uint8_t *p) {
    __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)p)), 7);
    return v_of_halves(_mm256_and_si256(wide, _mm256_set1_epi16((short)0xbfff))); /* its sign came along twice */
}
#else
INLINE V v_e4m3(const uint8_t *p) { EACH(float_of_half((uint16_t)((p[i] & 0x80) << 8 | (p[i] & 0x7f) << 7))); }
#endif

/* Values i .. i + 15 of a row; codes without their scale. */
INLINE V v_read(int64_t kind, const uint8_t *row, int64_t i) {
    switch (kind) {
    case HELD_FLOAT32: return v_load((const float *)row + i);
    case HELD_FLOAT16: return v_half((const uint16_t *)row + i);
    case HELD_BFLOAT16: return v_bfloat((const uint16_t *)row + i);
    default: return v_e4m3(row + i);
    }
}

/* Rounding to nearest, ties to even, as torch does it. */
INLINE uint16_t bfloat_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
INLINE uint8_t e4m3_of(float x) { /* in [-448, 448] */
    float small = fabsf(x) * 0x1p9f + 0x1.8p23f; /* below 2^-6 in steps of 2^-9 */
    uint32_t bits, steps;
    memcpy(&bits, &x, 4);
    memcpy(&steps, &small, 4);
    uint32_t sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
    uint32_t whole = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) - (120 << 3);
    return (uint8_t)(sign | ((magnitude < 0x3c800000 ? steps : whole) & 0x7f));
}

/* One row of one head into the cache at `to`; `scale` is where its scale goes. What is not finite makes that none. */
static void hold(int64_t kind, const float *x, int64_t D, uint8_t *to, float *scale) {
    if (kind == HELD_FLOAT32) memcpy(to, x, (size_t)D * 4);
    if (kind == HELD_FLOAT16)
        for (int64_t d = 0; d < D; d++) ((uint16_t *)to)[d] = half_of(x[d]);
    if (kind == HELD_BFLOAT16)
        for (int64_t d = 0; d < D; d++) ((uint16_t *)to)[d] = bfloat_of(x[d]);
    if (kind != HELD_E4M3) return;
    V most = v_set(1e-12f), poison = v_set(0.0f);
    for (int64_t d = 0; d < D; d += 16) {
        V values = v_load(x + d);
        most = v_max(v_abs(values), most);
        poison = v_fma(values, v_set(0.0f), poison);
    }
    float own = v_largest(most) / E4M3_MOST, quotients[16];
    for (int64_t d = 0; d < D; d += 16) {
        V limited = v_max(v_min(v_div(v_load(x + d), v_set(own)), v_set(E4M3_MOST)), v_set(-E4M3_MOST));
        v_store(quotients, limited);
        for (int i = 0; i < 16; i++) to[d + i] = e4m3_of(quotients[i]);
    }
    *scale = own + v_sum(poison);
}

/* Keys and values of the new rows into their slots. */
static void hold_rows(const Rows *r, const Paged *p) {
    int64_t bytes = held_bytes(p->kind) * p->D;
    int threads = num_threads(r->threads, r->N * p->K * p->D * 4);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < r->N; n++)
        for (int64_t h = 0; h < p->K; h++) {
            int64_t from = (n * p->K + h) * p->D, to = p->slots[n] * p->K + h;
            int is_coded = p->kind == HELD_E4M3;
            hold(p->kind, p->k + from, p->D, (uint8_t *)p->keys + to * bytes, is_coded ? p->key_scales + to : NULL);
            hold(p->kind, p->v + from, p->D, (uint8_t *)p->values + to * bytes, is_coded ? p->value_scales + to : NULL);
        }
}
