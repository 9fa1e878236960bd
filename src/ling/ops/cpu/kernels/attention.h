/* Attention from new tokens to the blocks of a cache.
 *
 * Keys are taken in pieces of SPLIT that begin at multiples of SPLIT. Each piece has a softmax of its own; pieces are
 * joined in order, so that it does not matter which thread made which, or how many rows were asked for together.
 */

enum { SPLIT = 256, ROWS_TOGETHER = 4, MOST_HEADS = 32 };

/* What a query has seen so far: the largest score, the sum of exponentials, the values weighted by them (D,). */
typedef struct {
    float most, sum;
} Seen;

static void join(Seen *to, float *out, Seen piece, const float *values, int64_t D) {
    float most = to->most > piece.most ? to->most : piece.most, both[16] = {to->most - most, piece.most - most};
    v_store(both, v_exp(v_load(both)));
    float before = to->sum > 0 ? both[0] : 0.0f, now = both[1];
    for (int64_t d = 0; d < D; d += 16)
        v_store(out + d, v_fma(v_set(now), v_load(values + d), v_mul(v_set(before), v_load(out + d))));
    to->sum = to->sum * before + piece.sum * now;
    to->most = most;
}

typedef struct {
    const Paged *p;
    const int64_t *table;
    int64_t kv_head;
} Keys;

INLINE int64_t key_offset(const Keys *at, int64_t j) {
    const Paged *p = at->p;
    return ((at->table[j / p->P] * p->P + j % p->P) * p->K + at->kv_head) * p->D;
}

/* Registers of channels summed at once, times 4 queries. */
#ifdef LEVEL_AVX512
enum { WIDE = 4 };
#else
enum { WIDE = 1 };
#endif

/* Values of keys begin..until, weighted, in channels d .. d + 16 * wide of `many` queries; key after key. */
INLINE void weigh(const Keys *at, float (*weights)[SPLIT], int64_t begin, int64_t until, int64_t from, int64_t d, int many,
                  int wide, float *out) {
    V sum[4][WIDE];
    int64_t D = at->p->D;
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int c = 0; c < WIDE; c++) sum[i][c] = v_set(0.0f);
    for (int64_t j = begin; j < until; j++) {
        const float *value = at->p->values + key_offset(at, j) + d;
        UNROLL for (int i = 0; i < many; i++) {
            V weight = v_set(weights[i][j - from]);
            UNROLL for (int c = 0; c < wide; c++) sum[i][c] = v_fma(weight, v_load(value + 16 * c), sum[i][c]);
        }
    }
    UNROLL for (int i = 0; i < many; i++) UNROLL for (int c = 0; c < wide; c++) v_store(out + i * D + d + 16 * c, sum[i][c]);
}

/* One piece of keys for `n` queries of rows and heads side by side; query i sees keys first..last[i]. */
static void attend_piece(const Keys *at, const float *const *q, const int64_t *last, int n, int64_t first, int64_t piece,
                         Seen *seen, float *values) {
    const Paged *p = at->p;
    int64_t D = p->D, from = piece * SPLIT, until = from;
    float scores[ROWS_TOGETHER * MOST_HEADS][SPLIT], scale = 1.0f / sqrtf((float)D);
    for (int i = 0; i < n; i++) until = last[i] + 1 > until ? last[i] + 1 : until;
    until = smaller(until, from + SPLIT);
    int64_t begin = first > from ? first : from;
    for (int64_t j = begin; j < until; j++) {
        const float *key = p->keys + key_offset(at, j);
        for (int i = 0; i < n; i++) scores[i][j - from] = dot(q[i], key, D) * scale;
    }
    for (int i = 0; i < n; i++) {
        int64_t end = smaller(last[i] + 1, until) - from, start = begin - from;
        float most = -INFINITY;
        V sum = v_set(0.0f);
        seen[i] = (Seen){-INFINITY, 0.0f};
        for (int64_t j = end > start ? end : start; j < until - from; j++) scores[i][j] = 0.0f;
        if (end <= start) continue;
        for (int64_t j = start; j < end; j++) most = scores[i][j] > most ? scores[i][j] : most;
        for (int64_t j = start / 16 * 16; j < end; j += 16) {
            v_store(scores[i] + j, v_exp(v_sub(v_load(scores[i] + j), v_set(most))));
            for (int64_t hidden = j; hidden < start; hidden++) scores[i][hidden] = 0.0f;
            for (int64_t hidden = end; hidden < j + 16; hidden++) scores[i][hidden] = 0.0f;
            sum = v_add(sum, v_load(scores[i] + j));
        }
        seen[i] = (Seen){most, v_sum(sum)};
    }
    for (int64_t d = 0; d < D; d += 16 * WIDE)
        for (int i = 0; i < n; i += 4) {
            int many = (int)smaller(4, n - i), wide = (int)smaller(WIDE, (D - d) / 16);
            if (many == 4 && wide == WIDE)
                weigh(at, &scores[i], begin, until, from, d, 4, WIDE, values + i * D);
            else
                weigh(at, &scores[i], begin, until, from, d, many, wide, values + i * D);
        }
}

/* Some neighbouring rows of one sequence, all query heads of one key-value head. */
typedef struct {
    int64_t row, count; /* in the batch */
    int64_t sequence, position;
} Stretch;

static int describe(const Stretch *s, const Paged *p, int64_t kv_head, const float *q, const float **queries, int64_t *last) {
    int64_t each = p->A / p->K;
    int n = 0;
    for (int64_t i = 0; i < s->count; i++)
        for (int64_t head = 0; head < each; head++, n++) {
            queries[n] = q + ((s->row + i) * p->A + kv_head * each + head) * p->D;
            last[n] = s->position + i;
        }
    return n;
}

static int attend(const Rows *r, const Paged *p) {
    int64_t D = p->D, each = p->A / p->K, num_stretches = 0, most_pieces = 1, work = 0;
    int64_t together = ROWS_TOGETHER, width = p->K * D;
    for (int64_t n = 0; p->k && n < r->N; n++) {
        memcpy(p->keys + p->slots[n] * width, p->k + n * width, (size_t)width * 4);
        memcpy(p->values + p->slots[n] * width, p->v + n * width, (size_t)width * 4);
    }
    Stretch *stretches = ling_scratch(SCRATCH_MISC, (r->N + 1) * (int64_t)sizeof(Stretch));
    if (!stretches) return 1;
    int64_t row = 0;
    for (int64_t b = 0; b < p->B; b++) {
        int64_t count = p->spans[3 * b], held = p->spans[3 * b + 1];
        for (int64_t i = 0; i < count; i += together) {
            Stretch s = {row + i, smaller(together, count - i), b, held - count + i};
            stretches[num_stretches++] = s;
        }
        row += count;
        work += count * held * p->A * D * 2;
        int64_t pieces = (held + SPLIT - 1) / SPLIT;
        most_pieces = pieces > most_pieces ? pieces : most_pieces;
    }
    int threads = num_threads(r->threads, work);
    int64_t tasks = num_stretches * p->K;
    /* Few tasks: each piece is one, and joined afterwards. Many: a task joins its own pieces as they come. */
    int64_t shares = tasks >= 4 * threads || threads == 1 ? 1 : most_pieces;
    int64_t queries_each = together * each, kept = queries_each * (D + 2);
    float *pieces = ling_scratch(SCRATCH_FLOATS, shares > 1 ? tasks * shares * kept * 4 : 4);
    if (!pieces) return 1;
    float *outputs = ling_scratch(SCRATCH_INPUT, threads * queries_each * D * 4);
    if (!outputs) return 1;

#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tasks * shares; i++) {
            int64_t share = i % shares, task = i / shares;
            const Stretch *s = stretches + task / p->K;
            Keys at = {p, p->tables + s->sequence * p->T, task % p->K};
            const float *queries[ROWS_TOGETHER * MOST_HEADS];
            int64_t last[ROWS_TOGETHER * MOST_HEADS], first = p->spans[3 * s->sequence + 2];
            int n = describe(s, p, at.kv_head, r->x, queries, last);
            int64_t used = (s->position + s->count + SPLIT - 1) / SPLIT;
            if (shares > 1) {
                float *own = pieces + i * kept;
                if (share < used) attend_piece(&at, queries, last, n, first, share, (Seen *)own, own + 2 * queries_each);
                continue;
            }
            Seen seen[ROWS_TOGETHER * MOST_HEADS], now[ROWS_TOGETHER * MOST_HEADS];
            float *values = outputs + thread_number() * queries_each * D;
            for (int j = 0; j < n; j++) {
                seen[j] = (Seen){-INFINITY, 0.0f};
                float *out = r->y + (queries[j] - r->x);
                for (int64_t d = 0; d < D; d += 16) v_store(out + d, v_set(0.0f));
            }
            for (int64_t piece = first / SPLIT; piece < used; piece++) {
                attend_piece(&at, queries, last, n, first, piece, now, values);
                for (int j = 0; j < n; j++)
                    if (now[j].sum > 0 || now[j].sum != now[j].sum)
                        join(&seen[j], r->y + (queries[j] - r->x), now[j], values + j * D, D);
            }
            for (int j = 0; j < n; j++) {
                float *out = r->y + (queries[j] - r->x);
                for (int64_t d = 0; d < D; d += 16) v_store(out + d, v_div(v_load(out + d), v_set(seen[j].sum)));
            }
        }
        if (shares > 1) {
#pragma omp for schedule(static)
            for (int64_t task = 0; task < tasks; task++) {
                const Stretch *s = stretches + task / p->K;
                const float *queries[ROWS_TOGETHER * MOST_HEADS];
                int64_t last[ROWS_TOGETHER * MOST_HEADS], first = p->spans[3 * s->sequence + 2];
                int n = describe(s, p, task % p->K, r->x, queries, last);
                int64_t used = (s->position + s->count + SPLIT - 1) / SPLIT;
                for (int j = 0; j < n; j++) {
                    float *out = r->y + (queries[j] - r->x);
                    Seen seen = {-INFINITY, 0.0f};
                    for (int64_t d = 0; d < D; d += 16) v_store(out + d, v_set(0.0f));
                    for (int64_t piece = first / SPLIT; piece < used; piece++) {
                        const float *own = pieces + (task * shares + piece) * kept;
                        Seen now = ((const Seen *)own)[j];
                        if (now.sum > 0 || now.sum != now.sum) join(&seen, out, now, own + 2 * queries_each + j * D, D);
                    }
                    for (int64_t d = 0; d < D; d += 16) v_store(out + d, v_div(v_load(out + d), v_set(seen.sum)));
                }
            }
        }
    }
    return 0;
}
