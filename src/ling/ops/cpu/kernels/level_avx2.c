/* For processors with AVX2, fused multiply-add and half precision conversions (Haswell, Zen and later). */
#if defined __x86_64__ && defined __GNUC__
#include <immintrin.h>
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define LEVEL_AVX2
#define LEVEL_NAME "avx2"
#define LEVEL_TABLE ling_level_avx2
#include "level.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
