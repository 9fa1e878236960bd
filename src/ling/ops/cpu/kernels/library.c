/* The entry points that Python calls; each goes to the best instruction set of this processor, or to one asked for. */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

extern const Level ling_level_plain;
#if defined __x86_64__ && defined __GNUC__
extern const Level ling_level_avx2, ling_level_avx512;
#endif

static const Level *chosen;

/* Take the level called `name`, or the best one where it is NULL. Return its name; NULL: this processor lacks it. */
const char *ling_choose_level(const char *name) {
    const Level *found = NULL;
#if defined __x86_64__ && defined __GNUC__
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512vnni");
    if (avx512 && (!name || !strcmp(name, "avx512"))) found = &ling_level_avx512;
    if (!found && avx2 && (!name || !strcmp(name, "avx2"))) found = &ling_level_avx2;
#endif
    if (!found && (!name || !strcmp(name, "plain"))) found = &ling_level_plain;
    if (found) chosen = found;
    return found ? found->name : NULL;
}

/* What Python knows as well, or this library is of other sources. */
int64_t ling_num_formats(void) { return NUM_FORMATS; }

/* Memory is kept for the next call: a step makes the same calls layer after layer. */
enum { SLOTS = 7 };
static _Thread_local struct {
    void *memory;
    int64_t bytes;
} scratch[SLOTS];

void *ling_scratch(int slot, int64_t bytes) {
    bytes = bytes > 0 ? bytes : 1; /* NULL means that there is no memory */
    if (scratch[slot].bytes < bytes) {
        free(scratch[slot].memory);
        scratch[slot].memory = malloc((size_t)bytes);
        scratch[slot].bytes = scratch[slot].memory ? bytes : 0;
    }
    return scratch[slot].memory;
}

/* Give this thread's memory back. */
void ling_release(void) {
    for (int i = 0; i < SLOTS; i++) {
        free(scratch[i].memory);
        scratch[i].memory = NULL;
        scratch[i].bytes = 0;
    }
}

int ling_linear(const float *x, float *y, int64_t N, int64_t threads, const Matrix *m, const float *bias) {
    Rows r = {x, y, N, threads};
    return N ? chosen->linear(&r, m, bias) : 0;
}

int ling_mlp(const float *x, float *y, int64_t N, int64_t threads, const Mlp *w) {
    Rows r = {x, y, N, threads};
    return N ? chosen->mlp(&r, w) : 0;
}

int ling_moe(const float *x, float *y, int64_t N, int64_t threads, const Moe *w, float *logits, int64_t *ids,
             float *weights, int64_t *counts) {
    Rows r = {x, y, N, threads};
    Routed to = {logits, ids, weights, counts};
    return chosen->moe(&r, w, &to);
}

int ling_rms_norm(const float *x, float *y, int64_t N, int64_t threads, const float *weight, int64_t H, double eps) {
    Rows r = {x, y, N, threads};
    return chosen->rms_norm(&r, weight, H, eps);
}

int ling_heads(const float *x, int64_t N, int64_t threads, const Heads *h, const float *cos, const float *sin, float *q,
               float *k, float *v) {
    Rows r = {x, NULL, N, threads};
    return !N ? 0 : chosen->heads(&r, h, cos, sin, q, k, v);
}

int ling_attend(const float *q, float *out, int64_t N, int64_t threads, const Paged *p) {
    Rows r = {q, out, N, threads};
    return chosen->attend(&r, p);
}

int ling_stack(float *y, int64_t N, int64_t threads, const Stack *s, const Step *step) {
    Rows r = {NULL, y, N, threads};
    return chosen->stack(&r, s, step);
}

int ling_choose(const float *logits, int64_t N, int64_t threads, int64_t V, const float *temperatures,
                const uint64_t *keys, int64_t *tokens) {
    Rows r = {logits, NULL, N, threads};
    Chance chance = {temperatures, keys};
    return chosen->choose(&r, V, &chance, tokens);
}

int ling_sketch(const Matrix *m, int64_t threads, const uint8_t *dither, uint8_t *codes) {
    return chosen->sketch(m, threads, dither, codes);
}

int ling_shortlist(const float *x, float *y, int64_t N, int64_t threads, const Matrix *m, const Sketch *sketch,
                   const Wanted *wanted) {
    Rows r = {x, y, N, threads};
    return N ? chosen->shortlist(&r, m, sketch, wanted) : 0;
}

int ling_propose(int64_t N, int64_t threads, const Stack *s, const Step *step, const Drafts *d, int64_t *tokens) {
    Rows r = {NULL, NULL, N, threads};
    return chosen->propose(&r, s, step, d, tokens);
}

int ling_pack(const float *w, int64_t M, int64_t K, int64_t threads, int64_t format, uint8_t *codes, uint16_t *scales) {
    Rows r = {w, NULL, M, threads};
    return chosen->pack(&r, K, format, codes, scales);
}
