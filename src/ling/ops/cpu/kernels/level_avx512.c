/* For processors with AVX-512 and its integer dot products (Ice Lake, Zen 4 and later). */
#if defined __x86_64__ && defined __GNUC__
#include <immintrin.h>
#include "kernels.h"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif
#define LEVEL_AVX512
#define LEVEL_NAME "avx512"
#define LEVEL_TABLE ling_level_avx512
#include "level.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
