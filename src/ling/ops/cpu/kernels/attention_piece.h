/* Some queries and one piece of the keys: scores, their exponentials, values weighted with them.
 *
 * A score is sixteen partial sums over channels, added up as `dot` does; a channel of the output is summed key after
 * key. Neither depends on how many queries and keys are taken side by side, which is for registers and caches alone.
 */

enum { SPLIT = 256, SPAN = SPLIT + 16, QUERIES = 4, KEYS = 4 }; /* SPAN: room for scores that are no key's */
enum { FEW_KEYS = 16, MANY_KEYS = 64 }; /* of a piece, looked at by all queries before the next ones are */
enum { WORTH_A_COPY = 32 };             /* queries: so many make up for copying floats */

#ifdef LEVEL_AVX512
enum { TILE_QUERIES = 4, TILE_KEYS = 4, WIDE = 4 }; /* WIDE: registers of channels summed at once */
#else
enum { TILE_QUERIES = 2, TILE_KEYS = 2, WIDE = 1 };
#endif

/* Rows of one sequence side by side, and some key-value heads; n queries look at each head. */
typedef struct {
    const Paged *p;
    const int64_t *table;
    int64_t row, count;      /* in the batch */
    int64_t position, first; /* of the first row; what is seen first */
    int64_t head, heads;
    int64_t n, room; /* room: n in whole groups of QUERIES */
} Task;

/* What a query has seen so far: the largest score, the sum of exponentials; values weighted by them lie elsewhere. */
typedef struct {
    float most, sum;
} Seen;

/* A thread's memory. Queries: `room` of the task's first head, of its second, and so on. */
typedef struct {
    float (*scores)[SPAN];
    float *values;    /* (queries, D) */
    float *copied;    /* (MANY_KEYS, D) keys or values of one head as floats */
    Seen *seen, *now; /* (queries,) */
    const float **q;  /* (queries,) */
    int64_t *slots;   /* (SPLIT,) of the piece's keys */
    float *scales;    /* (SPAN,) of codes */
} Desk;

/* Up to MANY_KEYS keys or values of one head, in the cache or copied from it, and what will be looked at next. */
typedef struct {
    int64_t kind, at, count; /* at: of the first one in the piece */
    int is_stream;           /* what is ahead is fetched row by row, by the only queries that there are */
    const uint8_t *rows[MANY_KEYS], *ahead[MANY_KEYS];
} Side;

/* A piece of keys from..until, of which begin.. are seen. */
typedef struct {
    int64_t from, begin, until;
} Piece;

/* The processor sees no stream in rows that lie apart. */
INLINE void fetch(const uint8_t *row, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
}

/* Keys (or values, `memory`) j..end; `next` holds what is looked at behind the last one. Many queries share a copy. */
static void take(const Task *t, const Desk *desk, const Piece *piece, const void *memory, const void *next, int64_t head,
                 int64_t j, int64_t end, Side *side) {
    const Paged *p = t->p;
    int64_t bytes = held_bytes(p->kind) * p->D, apart = p->K * bytes, count = end - j, left = piece->until - end;
    const uint8_t *base = (const uint8_t *)memory + head * bytes, *other = (const uint8_t *)next + head * bytes;
    const int64_t *slots = desk->slots + (j - piece->from), *first = desk->slots + (piece->begin - piece->from);
    side->kind = p->kind, side->at = j - piece->from, side->count = count, side->is_stream = t->n <= QUERIES;
    for (int64_t i = 0; i < count; i++) {
        side->rows[i] = base + slots[i] * apart;
        side->ahead[i] = i < left ? base + slots[count + i] * apart : other + first[smaller(i - left, count - 1)] * apart;
    }
    if (t->n > (p->kind == HELD_FLOAT32 ? WORTH_A_COPY : QUERIES)) {
        side->kind = HELD_FLOAT32;
        for (int64_t i = 0; i < count; i++) {
            float *to = desk->copied + i * p->D;
            for (int64_t d = 0; d < p->D; d += 16) v_store(to + d, v_read(p->kind, side->rows[i], d));
            side->rows[i] = (const uint8_t *)to;
        }
    }
    for (int64_t i = count; i % KEYS; i++) side->rows[i] = side->rows[i - 1], side->ahead[i] = side->ahead[i - 1];
}

/* Fetch the share of what is ahead that falls to queries i .. i + QUERIES, where others come after them. */
INLINE void fetch_share(const Task *t, const Side *side, int64_t i) {
    if (side->is_stream) return;
    int64_t until = smaller(i + QUERIES, t->n) * side->count / t->n;
    for (int64_t row = i * side->count / t->n; row < until; row++)
        fetch(side->ahead[row], held_bytes(t->p->kind) * t->p->D);
}

/* Partial sums of `many` queries and `keys` keys: part[i * KEYS + j]. */
INLINE void partial_scores(int64_t kind, const float *const *q, const uint8_t *const *rows, int64_t D, int many, int keys,
                           V *part) {
    V sum[TILE_QUERIES][TILE_KEYS];
    UNROLL for (int i = 0; i < many; i++) UNROLL for (int j = 0; j < keys; j++) sum[i][j] = v_set(0.0f);
    for (int64_t d = 0; d < D; d += 16) {
        V key[TILE_KEYS];
        UNROLL for (int j = 0; j < keys; j++) key[j] = v_held(v_read(kind, rows[j], d));
        UNROLL for (int i = 0; i < many; i++) {
            V x = v_held(v_load(q[i] + d));
            UNROLL for (int j = 0; j < keys; j++) sum[i][j] = v_fma(x, key[j], sum[i][j]);
        }
    }
    UNROLL for (int i = 0; i < many; i++) UNROLL for (int j = 0; j < keys; j++) part[i * KEYS + j] = sum[i][j];
}

/* Scores of `many` queries and all keys of a side. */
INLINE void score(int64_t kind, const Side *side, const float *const *q, int64_t D, int many, float (*scores)[SPAN]) {
    V scale = v_set(1.0f / sqrtf((float)D));
    int tile = many < TILE_QUERIES ? many : TILE_QUERIES;
    for (int64_t key = 0; key < side->count; key += KEYS) {
        V part[QUERIES * KEYS];
        float all[QUERIES * KEYS];
        if (side->is_stream)
            for (int j = 0; j < KEYS; j++) fetch(side->ahead[key + j], D * held_bytes(kind));
        UNROLL for (int i = many; i < QUERIES; i++) UNROLL for (int j = 0; j < KEYS; j++) part[i * KEYS + j] = v_set(0.0f);
        UNROLL for (int i = 0; i < many; i += tile)
            UNROLL for (int j = 0; j < KEYS; j += TILE_KEYS)
                partial_scores(kind, q + i, side->rows + key + j, D, tile, TILE_KEYS, part + i * KEYS + j);
        v_store(all, v_mul(v_sums(part, 1), scale));
        UNROLL for (int i = 0; i < many; i++) memcpy(scores[i] + side->at + key, all + i * KEYS, KEYS * sizeof(float));
    }
}

/* Add weighted values of a side to 16 * wide channels of `many` queries, key after key. */
INLINE void weigh(int64_t kind, const Side *side, float (*weights)[SPAN], int64_t D, int64_t d, int many, int wide,
                  float *out) {
    V sum[QUERIES][WIDE];
    int64_t size = held_bytes(kind);
    UNROLL for (int i = 0; i < many; i++) UNROLL for (int c = 0; c < wide; c++) sum[i][c] = v_load(out + i * D + d + 16 * c);
    for (int64_t key = 0; key < side->count; key++) {
        V value[WIDE];
        if (side->is_stream) fetch(side->ahead[key] + d * size, 16 * wide * size);
        UNROLL for (int c = 0; c < wide; c++) value[c] = v_held(v_read(kind, side->rows[key], d + 16 * c));
        UNROLL for (int i = 0; i < many; i++) {
            V weight = v_set(weights[i][side->at + key]);
            UNROLL for (int c = 0; c < wide; c++) sum[i][c] = v_fma(weight, value[c], sum[i][c]);
        }
    }
    UNROLL for (int i = 0; i < many; i++) UNROLL for (int c = 0; c < wide; c++) v_store(out + i * D + d + 16 * c, sum[i][c]);
}
INLINE void weigh_all(int64_t kind, const Side *side, float (*weights)[SPAN], int64_t D, int many, float *out) {
    int64_t d = 0;
    for (; d + 16 * WIDE <= D; d += 16 * WIDE) weigh(kind, side, weights, D, d, many, WIDE, out);
    for (; d < D; d += 16) weigh(kind, side, weights, D, d, many, 1, out);
}

/* The same for formats and numbers of queries that the compiler does not know; up to QUERIES of them are there. */
#define BY_MANY(function, kind, ...) \
    (n == 1 ? function(kind, __VA_ARGS__, 1, out) : n == 2 ? function(kind, __VA_ARGS__, 2, out) : function(kind, __VA_ARGS__, QUERIES, out))
#define BY_KIND(function, ...) \
    switch (side->kind) { \
    case HELD_FLOAT32: BY_MANY(function, HELD_FLOAT32, __VA_ARGS__); return; \
    case HELD_FLOAT16: BY_MANY(function, HELD_FLOAT16, __VA_ARGS__); return; \
    case HELD_BFLOAT16: BY_MANY(function, HELD_BFLOAT16, __VA_ARGS__); return; \
    default: BY_MANY(function, HELD_E4M3, __VA_ARGS__); return; \
    }
static void score_queries(const Side *side, const float *const *q, int64_t D, int64_t n, float (*out)[SPAN]) {
    BY_KIND(score, side, q, D)
}
static void weigh_queries(const Side *side, float (*weights)[SPAN], int64_t D, int64_t n, float *out) {
    BY_KIND(weigh_all, side, weights, D)
}

/* Turn scores of keys start..end of the `used` ones into exponentials, zeros beside them. */
static Seen exponentials(float *scores, int64_t start, int64_t end, int64_t used) {
    V most = v_set(-INFINITY), sum = v_set(0.0f);
    int64_t begin = start / 16 * 16, last = (used + 15) / 16 * 16;
    if (end <= start) {
        for (int64_t j = begin; j < last; j++) scores[j] = 0.0f;
        return (Seen){-INFINITY, 0.0f};
    }
    for (int64_t j = begin; j < start; j++) scores[j] = -INFINITY;
    for (int64_t j = end; j < last; j++) scores[j] = -INFINITY;
    for (int64_t j = begin; j < last; j += 16) most = v_max(v_load(scores + j), most); /* a NaN is passed over */
    float largest = v_largest(most);
    for (int64_t j = begin; j < last; j += 16) {
        V power = v_exp(v_sub(v_load(scores + j), v_set(largest)));
        v_store(scores + j, power);
        if (j < start || j + 16 > end)
            for (int64_t i = j; i < j + 16; i++)
                if (i < start || i >= end) scores[i] = 0.0f;
        sum = v_add(sum, v_load(scores + j));
    }
    return (Seen){largest, v_sum(sum)};
}

/* Multiply scores or weights of all keys by the scales of their codes. */
static void times_scales(const Task *t, const Desk *desk, const Piece *piece, const float *scales, int64_t head,
                         float (*scores)[SPAN]) {
    int64_t begin = piece->begin - piece->from, used = piece->until - piece->from;
    for (int64_t j = begin; j < used; j++) desk->scales[j] = scales[desk->slots[j] * t->p->K + head] * E4M3_UNIT;
    for (int64_t i = 0; i < t->n; i++)
        for (int64_t j = begin; j < used; j++) scores[i][j] *= desk->scales[j];
}

/* One piece of keys for all queries of a task: what they saw into desk->now and desk->values. */
static void attend_piece(const Task *t, const Desk *desk, int64_t number) {
    const Paged *p = t->p;
    int64_t from = number * SPLIT, D = p->D, step = t->heads > 1 ? FEW_KEYS : MANY_KEYS, each = p->A / p->K;
    Piece piece = {from, t->first > from ? t->first : from, smaller(t->position + t->count, from + SPLIT)};
    Side side;
    for (int64_t j = piece.begin; j < piece.until; j++) desk->slots[j - from] = t->table[j / p->P] * p->P + j % p->P;
    for (int64_t j = piece.begin, end; j < piece.until; j = end) {
        end = smaller(j / step * step + step, piece.until);
        for (int64_t h = 0; h < t->heads; h++) {
            take(t, desk, &piece, p->keys, p->values, t->head + h, j, end, &side);
            for (int64_t i = 0; i < t->n; i += QUERIES) {
                fetch_share(t, &side, i);
                score_queries(&side, desk->q + h * t->room + i, D, t->n - i, desk->scores + h * t->room + i);
            }
        }
    }
    for (int64_t h = 0; h < t->heads; h++) {
        float(*scores)[SPAN] = desk->scores + h * t->room;
        if (p->kind == HELD_E4M3) times_scales(t, desk, &piece, p->key_scales, t->head + h, scores);
        for (int64_t i = 0; i < t->n; i++) {
            int64_t end = smaller(t->position + i / each + 1, piece.until);
            desk->now[h * t->room + i] = exponentials(scores[i], piece.begin - from, end - from, piece.until - from);
        }
        if (p->kind == HELD_E4M3) times_scales(t, desk, &piece, p->value_scales, t->head + h, scores);
    }
    for (int64_t i = 0; i < t->heads * t->room * D; i += 16) v_store(desk->values + i, v_set(0.0f));
    for (int64_t j = piece.begin, end; j < piece.until; j = end) {
        end = smaller(j / step * step + step, piece.until);
        for (int64_t h = 0; h < t->heads; h++) {
            take(t, desk, &piece, p->values, p->keys, t->head + h, j, end, &side);
            for (int64_t i = 0; i < t->n; i += QUERIES) {
                fetch_share(t, &side, i);
                weigh_queries(&side, desk->scores + h * t->room + i, D, t->n - i, desk->values + (h * t->room + i) * D);
            }
        }
    }
}
