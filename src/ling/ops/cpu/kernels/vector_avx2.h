/* Sixteen floats in two registers. */
#include <immintrin.h>

typedef struct { __m256 a, b; } V;

enum { TOKENS = 4 };

#define BOTH(one) ((V){one(x.a), one(x.b)})
#define PAIR(one) ((V){one(x.a, y.a), one(x.b, y.b)})

INLINE V v_load(const float *p) { return (V){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE V v_held(V a) { return a; }
INLINE void v_store(float *p, V x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE V v_set(float x) { return (V){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE V v_add(V x, V y) { return PAIR(_mm256_add_ps); }
INLINE V v_sub(V x, V y) { return PAIR(_mm256_sub_ps); }
INLINE V v_mul(V x, V y) { return PAIR(_mm256_mul_ps); }
INLINE V v_div(V x, V y) { return PAIR(_mm256_div_ps); }
INLINE V v_max(V x, V y) { return PAIR(_mm256_max_ps); }
INLINE V v_min(V x, V y) { return PAIR(_mm256_min_ps); }
INLINE __m256 abs8(__m256 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE __m256 round8(__m256 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE V v_sqrt(V x) { return BOTH(_mm256_sqrt_ps); }
INLINE V v_abs(V x) { return BOTH(abs8); }
INLINE V v_round(V x) { return BOTH(round8); }
INLINE V v_fma(V x, V y, V z) { return (V){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE V v_half(const uint16_t *p) {
    return (V){_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 8)))};
}
INLINE __m256 bfloat8(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}
INLINE V v_bfloat(const uint16_t *p) { return (V){bfloat8(p), bfloat8(p + 8)}; }

INLINE __m256 power8(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
INLINE V v_scale2(V x, V n) { return v_mul(x, (V){power8(n.a), power8(n.b)}); }

INLINE void v_store_int8(int8_t *p, V x) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((void *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

INLINE uint16_t half_of(float x) { return _cvtss_sh(x, 0); }
INLINE float float_of_half(uint16_t h) { return _cvtsh_ss(h); }

INLINE float v_sum(V x) {
    __m256 h = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
INLINE V v_sums(const V *a, int step) {
    float sums[16];
    for (int i = 0; i < 16; i++) sums[i] = v_sum(a[i * step]);
    return v_load(sums);
}
INLINE float v_largest(V x) {
    __m256 h = _mm256_max_ps(x.a, x.b);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

INLINE void add_scaled(__m256i a, __m256i b, V scale, float activation, V *out) {
    V whole = {_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)};
    *out = v_fma(whole, v_mul(scale, v_set(activation)), *out);
}

/* The multiply-add of bytes takes one unsigned side and saturates at 16 bits, so a code's sign goes to the activation. */
INLINE void dot_int8(const uint8_t *codes, V scale, const int8_t *const *x, int64_t g, const Scales *s, int T, V *out) {
    const __m256i zero_point = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    __m256i a[TOKENS], b[TOKENS];
    UNROLL for (int t = 0; t < T; t++) a[t] = b[t] = _mm256_setzero_si256();
    for (int j = 0; j < 8; j++) {
        __m256i wa = _mm256_xor_si256(_mm256_loadu_si256((const void *)(codes + 64 * j)), zero_point);
        __m256i wb = _mm256_xor_si256(_mm256_loadu_si256((const void *)(codes + 64 * j + 32)), zero_point);
        __m256i ua = _mm256_abs_epi8(wa), ub = _mm256_abs_epi8(wb);
        UNROLL for (int t = 0; t < T; t++) {
            __m256i q = _mm256_set1_epi32(*(const int32_t *)(x[t] + 32 * g + 4 * j));
            __m256i pa = _mm256_maddubs_epi16(ua, _mm256_sign_epi8(q, wa));
            __m256i pb = _mm256_maddubs_epi16(ub, _mm256_sign_epi8(q, wb));
            a[t] = _mm256_add_epi32(a[t], _mm256_madd_epi16(pa, ones));
            b[t] = _mm256_add_epi32(b[t], _mm256_madd_epi16(pb, ones));
        }
    }
    UNROLL for (int t = 0; t < T; t++) add_scaled(a[t], b[t], scale, s[t].scales[g], &out[t]);
}

/* 8 products of two pairs, each at most 15 * 127 * 2, fit 16 bits: one widening per group. */
INLINE void dot_int4(const uint8_t *codes, V scale, const int8_t *const *x, int64_t g, const Scales *s, int T, V *out) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256i a[TOKENS], b[TOKENS];
    UNROLL for (int t = 0; t < T; t++) a[t] = b[t] = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++) {
        __m256i ca = _mm256_loadu_si256((const void *)(codes + 64 * j));
        __m256i cb = _mm256_loadu_si256((const void *)(codes + 64 * j + 32));
        __m256i wa = _mm256_and_si256(ca, low), wb = _mm256_and_si256(cb, low);
        __m256i wa4 = _mm256_and_si256(_mm256_srli_epi16(ca, 4), low), wb4 = _mm256_and_si256(_mm256_srli_epi16(cb, 4), low);
        UNROLL for (int t = 0; t < T; t++) {
            const int8_t *p = x[t] + 32 * g + 4 * j;
            __m256i q = _mm256_set1_epi32(*(const int32_t *)p), q4 = _mm256_set1_epi32(*(const int32_t *)(p + 16));
            a[t] = _mm256_add_epi16(a[t], _mm256_add_epi16(_mm256_maddubs_epi16(wa, q), _mm256_maddubs_epi16(wa4, q4)));
            b[t] = _mm256_add_epi16(b[t], _mm256_add_epi16(_mm256_maddubs_epi16(wb, q), _mm256_maddubs_epi16(wb4, q4)));
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        __m256i zero = _mm256_set1_epi32(-8 * s[t].sums[g]);
        __m256i ia = _mm256_add_epi32(_mm256_madd_epi16(a[t], ones), zero);
        __m256i ib = _mm256_add_epi32(_mm256_madd_epi16(b[t], ones), zero);
        add_scaled(ia, ib, scale, s[t].scales[g], &out[t]);
    }
}
