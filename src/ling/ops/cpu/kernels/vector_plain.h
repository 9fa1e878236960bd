/* Sixteen floats as an array: whatever the compiler makes of it on machines without AVX2. */
#include <math.h>
#include <string.h>

typedef struct { float v[16]; } V;

enum { TOKENS = 4 };

#define EACH(expression) V r; for (int i = 0; i < 16; i++) r.v[i] = (expression); return r

INLINE V v_load(const float *p) { V r; memcpy(&r, p, sizeof r); return r; }
INLINE V v_held(V a) { return a; }
INLINE void v_store(float *p, V a) { memcpy(p, &a, sizeof a); }
INLINE V v_set(float x) { EACH(x); }
INLINE V v_add(V a, V b) { EACH(a.v[i] + b.v[i]); }
INLINE V v_sub(V a, V b) { EACH(a.v[i] - b.v[i]); }
INLINE V v_mul(V a, V b) { EACH(a.v[i] * b.v[i]); }
INLINE V v_div(V a, V b) { EACH(a.v[i] / b.v[i]); }
INLINE V v_max(V a, V b) { EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
INLINE V v_min(V a, V b) { EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
INLINE V v_sqrt(V a) { EACH(sqrtf(a.v[i])); }
INLINE V v_abs(V a) { EACH(fabsf(a.v[i])); }
INLINE V v_round(V a) { EACH(rintf(a.v[i])); }
#ifdef __FP_FAST_FMAF
INLINE V v_fma(V a, V b, V c) { EACH(fmaf(a.v[i], b.v[i], c.v[i])); }
#else
INLINE V v_fma(V a, V b, V c) { EACH(a.v[i] * b.v[i] + c.v[i]); }
#endif
INLINE V v_scale2(V a, V n) { EACH(ldexpf(a.v[i], (int)n.v[i])); }

INLINE float float_of_half(uint16_t h) {
    uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float value;
    memcpy(&value, &magnitude, 4);
    value *= 0x1p112f; /* rebias the exponent; exact, subnormals included */
    memcpy(&magnitude, &value, 4);
    if ((h & 0x7c00) == 0x7c00) magnitude |= 0x7f800000;
    magnitude |= sign;
    memcpy(&value, &magnitude, 4);
    return value;
}
/* Round to the nearest float16, ties to even. */
INLINE uint16_t half_of(float x) {
    uint32_t bits, magnitude;
    memcpy(&bits, &x, 4);
    magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00; /* at least 65520 */
    if (magnitude < 0x38800000) { /* subnormal: steps of 2^-24, rounded by adding 1.5 * 2^23 of them */
        float value = fabsf(x) * 0x1p24f + 0x1.8p23f;
        memcpy(&magnitude, &value, 4);
        return sign | (uint16_t)(magnitude & 0x7ff);
    }
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return sign | (uint16_t)((magnitude - 0x38000000) >> 13);
}
INLINE V v_half(const uint16_t *p) { EACH(float_of_half(p[i])); }
INLINE V v_bfloat(const uint16_t *p) { EACH(float_of_bfloat(p[i])); }

INLINE void v_store_int8(int8_t *p, V a) {
    for (int i = 0; i < 16; i++) {
        float x = rintf(a.v[i]);
        p[i] = x >= -128 && x <= 127 ? (int8_t)x : -128; /* not a number: its scale is one neither */
    }
}

INLINE float v_sum(V a) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) a.v[i] += a.v[i + width];
    return a.v[0];
}
INLINE V v_sums(const V *a, int step) {
    float sums[16];
    for (int i = 0; i < 16; i++) sums[i] = v_sum(a[i * step]);
    return v_load(sums);
}
INLINE float v_largest(V a) {
    float most = a.v[0];
    for (int i = 1; i < 16; i++) most = a.v[i] > most ? a.v[i] : most;
    return most;
}

INLINE void dot_codes(int is_int4, const uint8_t *codes, V scale, const int8_t *x, float activation, int32_t start, V *out) {
    int32_t acc[TILE];
    for (int r = 0; r < TILE; r++) acc[r] = start;
    for (int j = 0; j < 8; j++)
        for (int r = 0; r < TILE; r++)
            for (int i = 0; i < 4; i++) {
                int at = 4 * r + i;
                int code = !is_int4 ? codes[64 * j + at] : j < 4 ? codes[64 * j + at] & 15 : codes[64 * (j - 4) + at] >> 4;
                acc[r] += code * x[4 * j + i];
            }
    V whole;
    for (int r = 0; r < TILE; r++) whole.v[r] = (float)acc[r];
    *out = v_fma(whole, v_mul(scale, v_set(activation)), *out);
}
INLINE void dot_int8(const uint8_t *codes, V scale, const int8_t *const *x, int64_t g, const Scales *s, int T, V *out) {
    for (int t = 0; t < T; t++) dot_codes(0, codes, scale, x[t] + 32 * g, s[t].scales[g], -128 * s[t].sums[g], &out[t]);
}
INLINE void dot_int4(const uint8_t *codes, V scale, const int8_t *const *x, int64_t g, const Scales *s, int T, V *out) {
    for (int t = 0; t < T; t++) dot_codes(1, codes, scale, x[t] + 32 * g, s[t].scales[g], -8 * s[t].sums[g], &out[t]);
}
