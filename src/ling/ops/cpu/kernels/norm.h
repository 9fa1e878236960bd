/* RMSNorm, and what lies between the fused projection and attention: split, norm of each head, half RoPE. */

static void norm_row(const float *x, const float *weight, int64_t n, float eps, float *y) {
    V inverse = v_set(1.0f / sqrtf(dot(x, x, n) / (float)n + eps));
    for (int64_t i = 0; i < n; i += 16)
        v_store_up_to(y + i, v_mul(v_mul(v_load_up_to(x + i, n - i), inverse), v_load_up_to(weight + i, n - i)), n - i);
}

static int rms_norm(const Rows *r, const float *weight, int64_t H, double eps) {
    int threads = num_threads(r->threads, r->N * H);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < r->N; n++) norm_row(r->x + n * H, weight, H, (float)eps, r->y + n * H);
    return 0;
}

/* Rotate the first 2 * half channels: channel j is paired with j + half. */
static void rotate(float *x, const float *cos, const float *sin, int64_t half) {
    for (int64_t j = 0; j < half; j += 16) {
        int64_t left = half - j;
        V a = v_load_up_to(x + j, left), b = v_load_up_to(x + half + j, left);
        V c = v_load_up_to(cos + j, left), s = v_load_up_to(sin + j, left);
        v_store_up_to(x + j, v_sub(v_mul(a, c), v_mul(b, s)), left);
        v_store_up_to(x + half + j, v_add(v_mul(b, c), v_mul(a, s)), left);
    }
}

/* q (N, A, D), k and v (N, K, D) of N rows; cos and sin (N, rotated / 2). */
static int heads(const Rows *r, const Heads *h, const float *cos, const float *sin, float *q, float *k, float *v) {
    int64_t all = h->A + 2 * h->K, D = h->D, half = h->rotated / 2;
    float *qkv = ling_scratch(SCRATCH_FLOATS, r->N * all * D * 4);
    if (!qkv) return 1;
    Rows projected = {r->x, qkv, r->N, r->threads};
    if (linear(&projected, &h->projection, h->bias)) return 1;
    int threads = num_threads(r->threads, r->N * all * D);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < r->N; n++)
        for (int64_t i = 0; i < all; i++) {
            const float *from = qkv + (n * all + i) * D;
            float *to = i < h->A ? q + (n * h->A + i) * D
                        : i < h->A + h->K ? k + (n * h->K + i - h->A) * D
                                          : v + (n * h->K + i - h->A - h->K) * D;
            const float *weight = i < h->A ? h->query_norm : h->key_norm;
            if (i >= h->A + h->K || !weight)
                memcpy(to, from, D * 4);
            else
                norm_row(from, weight, D, (float)h->eps, to);
            if (i < h->A + h->K) rotate(to, cos + n * half, sin + n * half, half);
        }
    return 0;
}
