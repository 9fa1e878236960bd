/* The vocabulary of the kernels: sixteen floats, whatever the machine calls them, and functions of them. */
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

/* Of one row of quantised activations: per group the scale, and the sum of its codes. */
typedef struct {
    const float *scales;
    const int32_t *sums;
} Scales;

INLINE float float_of_bfloat(uint16_t b) {
    uint32_t bits = (uint32_t)b << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Each level has v_sums(a, step): the sums of the lanes of a[0], a[step] .. a[15 * step], each as v_sum adds. */
#if defined LEVEL_AVX512
#include "vector_avx512.h"
#elif defined LEVEL_AVX2
#include "vector_avx2.h"
#else
#include "vector_plain.h"
#endif

/* Load n < 16 floats, zeros behind them. */
INLINE V v_load_part(const float *p, int64_t n) {
    float padded[16] = {0};
    for (int64_t i = 0; i < n; i++) padded[i] = p[i];
    return v_load(padded);
}
INLINE V v_bfloat_part(const uint16_t *p, int64_t n) {
    uint16_t padded[16] = {0};
    for (int64_t i = 0; i < n; i++) padded[i] = p[i];
    return v_bfloat(padded);
}
INLINE V v_load_up_to(const float *p, int64_t n) { return n >= 16 ? v_load(p) : v_load_part(p, n); }
INLINE void v_store_up_to(float *p, V a, int64_t n) {
    float all[16];
    if (n >= 16) {
        v_store(p, a);
        return;
    }
    v_store(all, a);
    for (int64_t i = 0; i < n; i++) p[i] = all[i];
}

/* exp within 2 units in the last place on [-87, 88]; beyond, the value at the end. NaN stays NaN. */
INLINE V v_exp(V x) {
    V n, r, p;
    x = v_min(v_set(88.0f), v_max(v_set(-87.0f), x)); /* in this order of arguments a NaN survives */
    n = v_round(v_mul(x, v_set(1.44269504f)));
    r = v_fma(n, v_set(-0.693359375f), x); /* ln 2 in two parts, the first one exact */
    r = v_fma(n, v_set(2.12194440e-4f), r);
    p = v_set(1.9875691500e-4f);
    p = v_fma(p, r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f));
    return v_scale2(p, n);
}
INLINE V v_sigmoid(V x) { return v_div(v_set(1.0f), v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), x)))); }
INLINE V v_swiglu(V gate, V up) {
    return v_mul(v_div(gate, v_add(v_set(1.0f), v_exp(v_sub(v_set(0.0f), gate)))), up);
}
INLINE float dot(const float *a, const float *b, int64_t n) {
    V sum = v_set(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) sum = v_fma(v_load(a + i), v_load(b + i), sum);
    if (i < n) sum = v_fma(v_load_part(a + i, n - i), v_load_part(b + i, n - i), sum);
    return v_sum(sum);
}
