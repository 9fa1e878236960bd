/* Sixteen floats in one register. */
#include <immintrin.h>

typedef __m512 V;
typedef __m512i I;

enum { TOKENS = 8 }; /* rows of activations that share one reading of a tile */

INLINE V v_load(const float *p) { return _mm512_loadu_ps(p); }
/* In a register: the compiler would read it once for each use, and loads are what runs out first. */
INLINE V v_held(V a) {
    __asm__("" : "+v"(a));
    return a;
}
INLINE void v_store(float *p, V a) { _mm512_storeu_ps(p, a); }
INLINE V v_set(float x) { return _mm512_set1_ps(x); }
INLINE V v_add(V a, V b) { return _mm512_add_ps(a, b); }
INLINE V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
INLINE V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
INLINE V v_div(V a, V b) { return _mm512_div_ps(a, b); }
INLINE V v_max(V a, V b) { return _mm512_max_ps(a, b); }
INLINE V v_min(V a, V b) { return _mm512_min_ps(a, b); }
INLINE V v_sqrt(V a) { return _mm512_sqrt_ps(a); }
INLINE V v_abs(V a) { return _mm512_abs_ps(a); }
INLINE V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE V v_round(V a) { return _mm512_roundscale_ps(a, 0); }
INLINE V v_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
INLINE V v_bfloat(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}

/* a * 2^n for whole n in [-126, 127]. */
INLINE V v_scale2(V a, V n) {
    I e = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_mul_ps(a, _mm512_castsi512_ps(e));
}

/* Round to integers in [-128, 127]. */
INLINE void v_store_int8(int8_t *p, V a) { _mm_storeu_si128((void *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a))); }

INLINE uint16_t half_of(float x) { return _cvtss_sh(x, 0); }
INLINE float float_of_half(uint16_t h) { return _cvtsh_ss(h); }

INLINE float v_sum(V a) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
/* Two vectors become one of half sums at each of four steps: a third of the work of sixteen sums. */
INLINE V half_sums_of_blocks(V a, V b) { return v_add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee)); }
INLINE V sums_of_blocks(V a, V b) { return v_add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd)); }
INLINE V half_sums(V a, V b) { return v_add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee)); }
INLINE V sums(V a, V b) { return v_add(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd)); }
INLINE V v_sums(const V *a, int step) {
    V four[4]; /* block b of four[i] is what is left of a[4 * b + i] */
    for (int i = 0; i < 4; i++) {
        V low = half_sums_of_blocks(a[i * step], a[(i + 4) * step]);
        V high = half_sums_of_blocks(a[(i + 8) * step], a[(i + 12) * step]);
        four[i] = sums_of_blocks(low, high);
    }
    return sums(half_sums(four[0], four[1]), half_sums(four[2], four[3]));
}
INLINE float v_largest(V a) { return _mm512_reduce_max_ps(a); }

/* Integer dots of one group of 32 columns: out[t] += scale * activation scale * (codes . activations). */
INLINE void dot_int8(const uint8_t *codes, V scale, const int8_t *const *x, int64_t g, const Scales *s, int T, V *out) {
    I acc[TOKENS];
    UNROLL for (int t = 0; t < T; t++) acc[t] = _mm512_set1_epi32(-128 * s[t].sums[g]);
    UNROLL for (int j = 0; j < 8; j++) {
        I w = _mm512_loadu_si512(codes + 64 * j);
        UNROLL for (int t = 0; t < T; t++)
            acc[t] = _mm512_dpbusd_epi32(acc[t], w, _mm512_set1_epi32(*(const int32_t *)(x[t] + 32 * g + 4 * j)));
    }
    UNROLL for (int t = 0; t < T; t++)
        out[t] = v_fma(_mm512_cvtepi32_ps(acc[t]), v_mul(scale, v_set(s[t].scales[g])), out[t]);
}

INLINE void dot_int4(const uint8_t *codes, V scale, const int8_t *const *x, int64_t g, const Scales *s, int T, V *out) {
    const I low = _mm512_set1_epi8(15);
    I acc[TOKENS];
    UNROLL for (int t = 0; t < T; t++) acc[t] = _mm512_set1_epi32(-8 * s[t].sums[g]);
    UNROLL for (int j = 0; j < 4; j++) {
        I both = _mm512_loadu_si512(codes + 64 * j);
        I w = _mm512_and_si512(both, low), w4 = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        UNROLL for (int t = 0; t < T; t++) {
            const int8_t *p = x[t] + 32 * g + 4 * j;
            acc[t] = _mm512_dpbusd_epi32(acc[t], w, _mm512_set1_epi32(*(const int32_t *)p));
            acc[t] = _mm512_dpbusd_epi32(acc[t], w4, _mm512_set1_epi32(*(const int32_t *)(p + 16)));
        }
    }
    UNROLL for (int t = 0; t < T; t++)
        out[t] = v_fma(_mm512_cvtepi32_ps(acc[t]), v_mul(scale, v_set(s[t].scales[g])), out[t]);
}
