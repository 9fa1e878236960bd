/* The sparse feed-forward in one call: router, choice, routed experts, shared expert.
 *
 * Rows are (token, choice) pairs sorted by expert. Stage 1 makes hidden rows, stage 2 adds experts' outputs up in the
 * order of the experts' numbers, the shared one last; a task owns columns of the output, so nothing is added twice at
 * once and no buffer of expert outputs is needed.
 */

/* Keep in best[0..k) the indices of the k largest of n values, largest first; of equals the lowest index wins. */
static void choose(const float *values, int64_t n, int64_t k, int64_t *best) {
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = found < k ? found : k - 1;
        if (found == k && !(values[i] > values[best[at]])) continue;
        while (at > 0 && values[i] > values[best[at - 1]]) best[at] = best[at - 1], at--;
        best[at] = i;
        found += found < k;
    }
}

/* The choice for one token: `scores` (E,) without bias; `room` for E + n_group floats and n_group indices. */
static void choose_experts(const Moe *m, const float *scores, float *room, int64_t *order, int64_t *ids, float *weights) {
    int64_t E = m->E, size = m->n_group > 1 ? E / m->n_group : E;
    float *biased = room, *of_group = room + E, total = 0.0f;
    for (int64_t e = 0; e < E; e++) biased[e] = m->bias ? scores[e] + m->bias[e] : scores[e];
    if (m->n_group > 1) {
        for (int64_t g = 0; g < m->n_group; g++) {
            const float *s = biased + g * size;
            float first = -INFINITY, second = -INFINITY;
            for (int64_t i = 0; i < size; i++) {
                if (s[i] > first)
                    second = first, first = s[i];
                else if (s[i] > second)
                    second = s[i];
            }
            of_group[g] = size > 1 ? first + second : first;
        }
        choose(of_group, m->n_group, m->topk_group, order);
        for (int64_t g = 0; g < m->n_group; g++) {
            int64_t i = 0;
            while (i < m->topk_group && order[i] != g) i++;
            if (i == m->topk_group)
                for (int64_t e = g * size; e < (g + 1) * size; e++) biased[e] = -INFINITY;
        }
    }
    choose(biased, E, m->k, ids);
    for (int64_t i = 0; i < m->k; i++) total += scores[ids[i]];
    for (int64_t i = 0; i < m->k; i++) {
        float share = m->k > 1 ? scores[ids[i]] / (total + 1e-20f) : scores[ids[i]];
        weights[i] = share * (float)m->scaling;
    }
}

/* Rows sorted by expert, tokens in order within each. */
typedef struct {
    int64_t *begin;  /* (E + 1,) */
    int64_t *token;  /* (N * k,) of each row */
    int64_t *active; /* experts with rows, ascending */
    float *weight;   /* (N * k,) of each row */
    float *room;     /* per thread, for choose_experts */
    float *scores;   /* (N, E) */
    int64_t num_active, room_size;
} Order;

static int make_order(Order *o, const Moe *m, int64_t N, int threads) {
    int64_t E = m->E, R = N * m->k, G = m->n_group;
    o->room_size = (E + 3 * G + 32) / 2 * 2;
    int64_t longs = 2 * E + 2 + R, floats = R + threads * o->room_size + N * E;
    int64_t *memory = ling_scratch(SCRATCH_MISC, 8 * longs + 4 * floats + 8);
    if (!memory) return 1;
    o->begin = memory, o->active = o->begin + E + 2, o->token = o->active + E;
    o->room = (float *)(o->token + R), o->weight = o->room + threads * o->room_size, o->scores = o->weight + R;
    return 0;
}

static void sort_rows(Order *o, const Moe *m, int64_t N, const Routed *r) {
    int64_t E = m->E, k = m->k;
    for (int64_t e = 0; e < E; e++) r->counts[e] = 0;
    for (int64_t i = 0; i < N * k; i++) r->counts[r->ids[i]]++;
    o->begin[0] = o->num_active = 0;
    for (int64_t e = 0; e < E; e++) {
        o->begin[e + 1] = o->begin[e] + r->counts[e];
        if (r->counts[e]) o->active[o->num_active++] = e;
    }
    for (int64_t i = 0; i < N * k; i++) { /* begin moves to the end of each expert's rows, and back below */
        int64_t row = o->begin[r->ids[i]]++;
        o->token[row] = i / k, o->weight[row] = r->weights[i];
    }
    for (int64_t e = E; e > 0; e--) o->begin[e] = o->begin[e - 1];
    o->begin[0] = 0;
}

static void route_columns(const Moe *m, int64_t tile, const Rows *r, float *logits, float *scores) {
    Input in = {r->x, NULL, NULL, NULL, m->router.columns};
    columns_of(&m->router, tile, tile + 1, &in, r->N, NULL, logits);
    int64_t left = m->E - tile * TILE;
    for (int64_t n = 0; n < r->N; n++) {
        int64_t at = n * m->E + tile * TILE;
        v_store_up_to(scores + at, v_sigmoid(v_load_up_to(logits + at, left)), left);
    }
}

static void expert_hidden(const Moe *m, const Order *o, int64_t e, int64_t from, int64_t end, const Input *in,
                          const Hidden *h) {
    int64_t F = m->gate_up.rows, tiles = tiles_of(F);
    Matrix gate = matrix_behind(&m->gate_up, 2 * e * tiles, 2 * e * F);
    Matrix up = matrix_behind(&m->gate_up, (2 * e + 1) * tiles, (2 * e + 1) * F);
    for (int64_t row = o->begin[e]; row < o->begin[e + 1]; row += TOKENS) {
        int T = (int)smaller(TOKENS, o->begin[e + 1] - row);
        gate_groups(&gate, &up, from, end, in, o->token + row, T, h, row);
    }
}

static void expert_output(const Moe *m, const Order *o, int64_t e, int64_t from, int64_t to, const Hidden *h, float *y) {
    int64_t H = m->down.rows;
    Matrix down = matrix_behind(&m->down, e * tiles_of(H), e * H);
    for (int64_t row = o->begin[e]; row < o->begin[e + 1]; row += TOKENS) {
        float out[TOKENS][TILE], room[COLUMNS_TOGETHER * TOKENS];
        int64_t rows[TOKENS];
        int T = (int)smaller(TOKENS, o->begin[e + 1] - row);
        for (int t = 0; t < T; t++) rows[t] = row + t;
        Input own = laid(&h->in, rows, T, room);
        for (int64_t tile = from; tile < to; tile++) {
            times(&down, tile, &own, rows, T, out);
            for (int t = 0; t < T; t++) {
                float *at = y + o->token[row + t] * H + tile * TILE;
                int64_t left = H - tile * TILE;
                v_store_up_to(at, v_fma(v_set(o->weight[row + t]), v_load(out[t]), v_load_up_to(at, left)), left);
            }
        }
    }
}

static void shared_output(const Moe *m, int64_t from, int64_t to, const Hidden *h, int64_t N, float *y) {
    const Matrix *down = &m->shared.down;
    for (int64_t n = 0; n < N; n += TOKENS) {
        float out[TOKENS][TILE], room[COLUMNS_TOGETHER * TOKENS];
        int64_t rows[TOKENS];
        int T = (int)smaller(TOKENS, N - n);
        for (int t = 0; t < T; t++) rows[t] = n + t;
        Input own = laid(&h->in, rows, T, room);
        for (int64_t tile = from; tile < to; tile++) {
            times(down, tile, &own, rows, T, out);
            for (int t = 0; t < T; t++) {
                float *at = y + (n + t) * down->rows + tile * TILE;
                int64_t left = down->rows - tile * TILE;
                v_store_up_to(at, v_add(v_load_up_to(at, left), v_load(out[t])), left);
            }
        }
    }
}

static int moe(const Rows *r, const Moe *m, const Routed *to) {
    int64_t N = r->N, H = m->down.rows, F = m->gate_up.rows;
    int has_shared = m->shared.down.codes != NULL;
    int threads = num_threads(r->threads, 3 * H * F * N * m->k);
    Order o;
    /* A packed expert's input is codes, another one's the floats: both are at hand, since they may differ. */
    int codes_wanted = !holds_values(&m->gate_up) || (has_shared && !holds_values(&m->shared.gate));
    Input floats = {r->x, NULL, NULL, NULL, H}, codes = {0};
    if (codes_wanted) {
        void *memory = ling_scratch(SCRATCH_INPUT, quantized_bytes(N, H));
        if (!memory) return 1;
        codes = quantized_input(memory, N, H);
    }
    const Input *routed_in = holds_values(&m->gate_up) ? &floats : &codes;
    const Input *shared_in = has_shared && !holds_values(&m->shared.gate) ? &codes : &floats;
    Hidden hidden = make_hidden(N * m->k, &m->down, SCRATCH_HIDDEN), shared = {{0}, 0};
    if (has_shared) shared = make_hidden(N, &m->shared.down, SCRATCH_FLOATS);
    if (is_missing(&hidden.in) || (has_shared && is_missing(&shared.in)) || make_order(&o, m, N, threads)) return 1;
    int64_t groups = groups_of(F), shared_groups = has_shared ? groups_of(m->shared.down.columns) : 0;
    int64_t each = N * m->k / m->E; /* rows of an expert, on average */
    int64_t tiles = tiles_of(H), size = task_tiles(&m->down, each, threads, 16), router_tiles = tiles_of(m->E);
    int64_t most = task_groups(&m->gate_up, each), next = 0, next_shared = 0;

#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        if (codes_wanted) {
#pragma omp for schedule(static) nowait
            for (int64_t n = 0; n < N; n++) quantize_row(r->x + n * H, H, &codes, n);
        }
#pragma omp for schedule(dynamic)
        for (int64_t tile = 0; tile < router_tiles; tile++) route_columns(m, tile, r, to->logits, o.scores);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++) {
            float *room = o.room + thread_number() * o.room_size;
            int64_t *order = (int64_t *)(room + (m->E + m->n_group + 1) / 2 * 2);
            choose_experts(m, o.scores + n * m->E, room, order, to->ids + n * m->k, to->weights + n * m->k);
        }
#pragma omp single
        sort_rows(&o, m, N, to);
        int64_t all = o.num_active * groups;
        for (int64_t end = 0, from; (from = claim(&next, all, groups, most, threads, &end)) < all;) {
            int64_t i = from / groups;
            expert_hidden(m, &o, o.active[i], from - i * groups, end - i * groups, routed_in, &hidden);
        }
        all = shared_groups;
        for (int64_t end = 0, from; (from = claim(&next_shared, all, all, most, threads, &end)) < all;)
            gate_all(&m->shared.gate, &m->shared.up, from, end, shared_in, N, &shared);
#pragma omp barrier
#pragma omp for schedule(dynamic) nowait
        for (int64_t from = 0; from < tiles; from += size) {
            int64_t end = smaller(from + size, tiles);
            for (int64_t n = 0; n < N; n++)
                for (int64_t i = from * TILE; i < smaller(end * TILE, H); i++) r->y[n * H + i] = 0.0f;
            for (int64_t i = 0; i < o.num_active; i++) expert_output(m, &o, o.active[i], from, end, &hidden, r->y);
            if (has_shared) shared_output(m, from, end, &shared, N, r->y);
        }
    }
    return 0;
}
