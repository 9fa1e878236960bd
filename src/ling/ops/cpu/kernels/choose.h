/* One token per row of logits: the largest, or the largest with Gumbel noise, which no stream gives but a function. */

#define MOST_NOISE 17.4f /* that 24 bits give */

/* The first of the largest; 0 where nothing can be compared. */
static int64_t largest_at(const float *x, int64_t n) {
    V most = v_set(-INFINITY);
    int64_t whole = n / 16 * 16;
    for (int64_t i = 0; i < whole; i += 16) most = v_max(v_load(x + i), most);
    float value = v_largest(most);
    for (int64_t i = whole; i < n; i++) value = x[i] > value ? x[i] : value;
    for (int64_t i = 0; i < n; i++)
        if (x[i] == value) return i;
    return 0;
}

/* splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014), as ops/noise.py has it. */
INLINE uint64_t mix(uint64_t z) {
    z += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

INLINE float noise_of(uint32_t bits24) { return (float)-log(-log((bits24 + 0.5) / (1 << 24))); }

/* More noise than bits that begin with so many ones can give: 1 - u exceeds 2^-(ones + 1). */
INLINE float noise_bound(uint32_t bits24) {
    uint32_t zeros = ~bits24 & 0xffffff;
    return zeros ? 0.694f * (float)(__builtin_clz(zeros) - 7) : MOST_NOISE;
}

/* Every token's logit over the temperature and its noise; whoever cannot win with its bound is not computed. */
static int64_t drawn_at(const float *x, int64_t n, float temperature, uint64_t key) {
    int64_t first = largest_at(x, n), chosen = first;
    float best = x[first] / temperature + noise_of(mix((uint64_t)first ^ key) >> 40), hopeless = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        if (x[i] < hopeless) continue;
        uint32_t bits = (uint32_t)(mix((uint64_t)i ^ key) >> 40);
        float value = x[i] / temperature;
        if (value + noise_bound(bits) < best) continue;
        value += noise_of(bits);
        if (value > best || (value == best && i < chosen)) {
            best = value, chosen = i;
            hopeless = (best - MOST_NOISE) * temperature;
            hopeless -= 1e-5f * fabsf(hopeless);
        }
    }
    return chosen;
}

/* r->x are logits (N, V). */
static int choose_tokens(const Rows *r, int64_t V, const Chance *c, int64_t *chosen) {
    int threads = num_threads(r->threads, r->N * V);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1 && r->N > 1)
    for (int64_t n = 0; n < r->N; n++) {
        const float *own = r->x + n * V;
        chosen[n] = c->temperatures[n] > 0 ? drawn_at(own, V, c->temperatures[n], c->keys[n]) : largest_at(own, V);
    }
    return 0;
}
