/* The logits of those tokens that can still be chosen, and -inf for the others: a first look at half the bytes of an int8
 * matrix tells who they are, and only their tiles are read whole.
 *
 * A sketch holds the byte c of a column as floor((c + dither) / 17), four bits, where the dither is one of 0 .. 16 for each
 * column. So c is 17 times that, less the dither, plus 8, plus a rest from -8 to 8. Dithers are random and independent,
 * so for any matrix and any activations (but those that somebody made from these very dithers, which are always the same)
 * so are the rests, each of the 17 equally likely: their sum over columns, weighted by s (the scale of the matrix) times x
 * (the activation), is sub-Gaussian with the variance 24 * sum (s x)^2, and beyond ten standard deviations with a
 * probability below 2 exp(-50) = 4e-22. No token is left out that lies within those.
 */
enum { MOST_RANKED = 64, TRIED = 3, MOST_TRIED = MOST_RANKED * TRIED };
enum { SKETCH_STEP = 17, ROWS_TOGETHER = 4 };
#define DEVIATIONS 49.0f    /* ten of them: 10 sqrt(24) */
#define PER_ROUNDING 1e-4f  /* times (G + 4) sqrt(G): what float sums over G groups, here and of the product, can be off by */
#define ROUNDED 3e-7f       /* logits that are apart by so little can be equal once divided by a temperature */
#define LEAST_ENERGY 1e-20f /* of a group, beside that of the largest activations: their product with scales must not vanish */
#define LEAST_UNIT 1e-20f   /* the largest activation scale, between which and the next line nothing that counts vanishes */
#define MOST_UNIT 1e20f     /* or overflows, whatever float16 the weights' scales are; with any other, all is read */

/* A first look at some rows of activations: what sums of codes lack, and what is not known of them. */
typedef struct {
    Matrix rough; /* the sketch, with the scales of the matrix itself */
    Input in;
    float *offsets;  /* (N, G) of each scale: activation scale * sum ((16 - dither) * activation) */
    float *energies; /* (N, G) of each squared scale: sum of squared activations, in units of the row's largest scale */
    float *margins;  /* (N,) what roots of sums of those are multiplied by */
} Look;

/* What a row of logits is looked through for. */
typedef struct {
    int64_t rank;
    float least; /* logit, or logit with noise, that is reached by others already */
    float temperature, hopeless;
    uint64_t key;
} Goal;

static int sketch(const Matrix *m, int64_t threads, const uint8_t *dither, uint8_t *codes) {
    int64_t tiles = tiles_of(m->rows), G = groups_of(m->columns);
    const uint8_t *from = m->codes;
    int useful = num_threads(threads, m->rows * m->columns);
#pragma omp parallel for schedule(static) num_threads(useful) if (useful > 1)
    for (int64_t i = 0; i < tiles * G; i++) {
        const uint8_t *own = dither + i % G * GROUP, *group = from + i * TILE * GROUP;
        uint8_t *to = codes + i * TILE * GROUP / 2;
        for (int quad = 0; quad < 4; quad++)
            for (int at = 0; at < 64; at++) {
                int low = (group[quad * 64 + at] + own[4 * quad + at % 4]) / SKETCH_STEP;
                int high = (group[quad * 64 + at + 256] + own[4 * quad + at % 4 + 16]) / SKETCH_STEP;
                to[quad * 64 + at] = (uint8_t)(low | high << 4);
            }
    }
    return 0;
}

static void prepare_row(const Look *l, int64_t n, const uint8_t *dither) {
    int64_t G = groups_of(l->rough.columns);
    const float *scales = l->in.scales + n * G;
    const int8_t *x = l->in.codes + n * l->in.columns;
    float unit = 0.0f;
    for (int64_t g = 0; g < G; g++) unit = scales[g] > unit ? scales[g] : unit;
    for (int64_t g = 0; g < G; g++, x += GROUP, dither += GROUP) {
        int32_t lacking = 0, squares = 0;
        for (int i = 0; i < GROUP; i++) lacking += (16 - dither[i]) * x[i], squares += x[i] * x[i];
        float share = unit > 0 ? scales[g] / unit : 0.0f, energy = share * share * (float)squares;
        l->offsets[n * G + g] = scales[g] * (float)lacking;
        l->energies[n * G + g] = energy < LEAST_ENERGY ? LEAST_ENERGY : energy;
    }
    float margin = unit * (DEVIATIONS + PER_ROUNDING * (float)(G + 4) * sqrtf((float)G));
    l->margins[n] = unit >= LEAST_UNIT && unit <= MOST_UNIT ? margin : NAN; /* a bound that is none leaves nobody out */
}

/* What the logits of a tile's rows cannot exceed, for T <= ROWS_TOGETHER rows of activations from n on. */
INLINE void bound_tile(const Look *l, int64_t tile, int64_t n, int T, V *out) {
    int64_t G = groups_of(l->rough.columns);
    const uint8_t *codes = (const uint8_t *)l->rough.codes + tile * tile_bytes(&l->rough);
    const uint16_t *s = l->rough.scales + tile * G * TILE;
    const int8_t *x[ROWS_TOGETHER];
    Scales scales[ROWS_TOGETHER];
    V sums[ROWS_TOGETHER], lacking[ROWS_TOGETHER], unknown[ROWS_TOGETHER];
    UNROLL for (int t = 0; t < T; t++) {
        x[t] = l->in.codes + (n + t) * l->in.columns;
        scales[t] = (Scales){l->in.scales + (n + t) * G, l->in.sums + (n + t) * G};
        sums[t] = lacking[t] = unknown[t] = v_set(0.0f);
    }
    for (int64_t g = 0; g < G; g++, codes += TILE * GROUP / 2, s += TILE) {
        V scale = v_half(s), squared = v_mul(scale, scale);
        dot_int4(codes, scale, x, g, scales, T, sums); /* of codes less 8 */
        UNROLL for (int t = 0; t < T; t++) {
            lacking[t] = v_fma(scale, v_set(l->offsets[(n + t) * G + g]), lacking[t]);
            unknown[t] = v_fma(squared, v_set(l->energies[(n + t) * G + g]), unknown[t]);
        }
    }
    UNROLL for (int t = 0; t < T; t++) {
        V about = v_fma(sums[t], v_set(SKETCH_STEP), lacking[t]);
        out[t] = v_fma(v_sqrt(unknown[t]), v_set(l->margins[n + t]), about);
    }
}

static void bound_tiles(const Look *l, int64_t from, int64_t end, int64_t N, float *y) {
    int64_t rows = l->rough.rows;
    for (int64_t n = 0; n < N; n += ROWS_TOGETHER) {
        int T = (int)smaller(ROWS_TOGETHER, N - n);
        for (int64_t tile = from; tile < end; tile++) {
            V most[ROWS_TOGETHER];
            switch (T) {
            case 1: bound_tile(l, tile, n, 1, most); break;
            case 2: bound_tile(l, tile, n, 2, most); break;
            case 3: bound_tile(l, tile, n, 3, most); break;
            default: bound_tile(l, tile, n, 4, most);
            }
            for (int t = 0; t < T; t++) v_store_up_to(y + (n + t) * rows + tile * TILE, most[t], rows - tile * TILE);
        }
    }
}

/* The places of the `count` largest values, in any order. */
static void largest_places(const float *x, int64_t n, int64_t count, int64_t *places) {
    int64_t held = 0, least = 0;
    for (int64_t i = 0; i < n; i++) {
        if (held == count && i % 16 == 0 && i + 16 <= n && !(v_largest(v_load(x + i)) > x[places[least]])) {
            i += 15; /* none of sixteen */
            continue;
        }
        if (held < count)
            places[held++] = i;
        else if (x[i] > x[places[least]])
            places[least] = i;
        else
            continue;
        least = 0;
        for (int64_t j = 1; j < held; j++) least = x[places[j]] < x[places[least]] ? j : least;
    }
}

static float exactly(const Matrix *m, const Input *in, int64_t n, int64_t place) {
    float out[1][TILE];
    times(m, place / TILE, in, &n, 1, out);
    return out[0][place % TILE];
}

/* The rank-th largest of `count` values, which are sorted; not a number where one is none. */
static float ranked(float *values, int64_t count, int64_t rank) {
    for (int64_t i = 0; i < count; i++) {
        float value = values[i];
        int64_t at = i;
        if (value != value) return value;
        for (; at && values[at - 1] < value; at--) values[at] = values[at - 1];
        values[at] = value;
    }
    return values[rank - 1];
}

/* Set what has to be reached, from the few that promise most; `bounds` (V,) exceed the logits of row n. */
static void set_goal(Goal *goal, const Matrix *m, const Input *in, int64_t n, const float *bounds, int64_t *read_again) {
    int64_t V = m->rows, places[MOST_TRIED], rank = smaller(goal->rank, V);
    float own[MOST_TRIED];
    if (!goal->rank) {
        int64_t place = drawn_at(bounds, V, goal->temperature, goal->key);
        goal->least = exactly(m, in, n, place) / goal->temperature + noise_of(mix((uint64_t)place ^ goal->key) >> 40);
        goal->hopeless = (goal->least - MOST_NOISE) * goal->temperature;
        goal->hopeless -= 1e-5f * fabsf(goal->hopeless);
        *read_again += 1;
        return;
    }
    int64_t count = rank == 1 ? 1 : smaller(TRIED * rank, V);
    if (count == 1)
        places[0] = largest_at(bounds, V);
    else
        largest_places(bounds, V, count, places);
    for (int64_t i = 0; i < count; i++) own[i] = exactly(m, in, n, places[i]);
    goal->least = ranked(own, count, rank);
    goal->least -= ROUNDED * fabsf(goal->least); /* not a number: nobody is below it */
    *read_again += count;
}

/* Whether any of `count` tokens from `first` on may reach the goal. */
static int may_reach(const Goal *goal, const float *bounds, int64_t first, int64_t count) {
    int any = 0;
    if (goal->rank) {
        for (int64_t i = 0; i < count; i++) any |= !(bounds[i] < goal->least);
        return any;
    }
    for (int64_t i = 0; i < count && !any; i++) {
        if (bounds[i] < goal->hopeless) continue;
        uint32_t bits = (uint32_t)(mix((uint64_t)(first + i) ^ goal->key) >> 40);
        float value = bounds[i] / goal->temperature;
        any = !(value + noise_bound(bits) < goal->least) && !(value + noise_of(bits) < goal->least);
    }
    return any;
}

/* A tile of r->y: the product for those rows that may reach their goals, -inf for the others. Return how often it is read. */
static int settle_tile(const Rows *r, const Matrix *m, int64_t tile, const Input *in, const Goal *goals) {
    int64_t rows[TOKENS], first = tile * TILE, count = smaller(TILE, m->rows - first);
    float out[TOKENS][TILE];
    int T = 0, read = 0;
    for (int64_t n = 0; n < r->N; n++) {
        float *own = r->y + n * m->rows + first;
        if (may_reach(goals + n, own, first, count))
            rows[T++] = n;
        else
            v_store_up_to(own, v_set(-INFINITY), count);
        if (!T || (T < TOKENS && n + 1 < r->N)) continue;
        times(m, tile, in, rows, T, out);
        for (int t = 0; t < T; t++) v_store_up_to(r->y + rows[t] * m->rows + first, v_load(out[t]), count);
        T = 0, read++;
    }
    return read;
}

/* r->y are logits (N, rows of m), those of tiles where nobody may reach a row's goal -inf. m is int8. */
static int shortlist(const Rows *r, const Matrix *m, const Sketch *s, const Wanted *w) {
    int64_t N = r->N, G = groups_of(m->columns), tiles = tiles_of(m->rows), read_again = 0, next = 0, then = 0;
    Look l = {*m, make_input(r->x, N, m, SCRATCH_INPUT), NULL, NULL, NULL};
    Goal *goals = ling_scratch(SCRATCH_ROUGH, N * ((int64_t)sizeof(Goal) + 8 * G + 4));
    if (is_missing(&l.in) || !goals) return 1;
    l.rough.format = INT4, l.rough.codes = s->codes;
    l.offsets = (float *)(goals + N), l.energies = l.offsets + N * G, l.margins = l.energies + N * G;
    int threads = num_threads(r->threads, m->rows * m->columns * N);
    int64_t size = task_tiles(&l.rough, N, threads, 8), again_size = task_tiles(m, N, threads, 8);
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(+ : read_again)
    {
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            quantize_row(r->x + n * m->columns, m->columns, &l.in, n);
            prepare_row(&l, n, s->dither);
        }
        for (int64_t end = 0, from; (from = claim(&next, tiles, tiles, size, threads, &end)) < tiles;)
            bound_tiles(&l, from, end, N, r->y);
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < N; n++) {
            int64_t rank = w->ranks ? w->ranks[n] : w->chance.temperatures[n] <= 0;
            goals[n] = (Goal){rank, 0, rank ? 0 : w->chance.temperatures[n], 0, rank ? 0 : w->chance.keys[n]};
            set_goal(goals + n, m, &l.in, n, r->y + n * m->rows, &read_again);
        }
        for (int64_t end = 0, from; (from = claim(&then, tiles, tiles, again_size, threads, &end)) < tiles;)
            for (int64_t tile = from; tile < end; tile++) read_again += settle_tile(r, m, tile, &l.in, goals);
    }
    *w->read_again += read_again;
    return 0;
}
