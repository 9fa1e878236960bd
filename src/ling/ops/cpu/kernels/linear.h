/* One matrix times N rows; and the SwiGLU feed-forward, two such steps with the gate between them. */

enum { SCRATCH_INPUT, SCRATCH_HIDDEN, SCRATCH_MISC, SCRATCH_FLOATS, SCRATCH_STACK, SCRATCH_DRAFTS, SCRATCH_ROUGH };

/* The rows of x as m wants them; NULL codes and values where memory ran out. Filled by `fill_input` in parallel. */
static Input make_input(const float *x, int64_t N, const Matrix *m, int slot) {
    if (holds_values(m)) return (Input){x, NULL, NULL, NULL, m->columns, NULL};
    void *memory = ling_scratch(slot, quantized_bytes(N, m->columns));
    return memory ? quantized_input(memory, N, m->columns) : (Input){0};
}
INLINE int is_missing(const Input *in) { return !in->values && !in->codes; }

/* y[:, tiles from..to] of all N rows; `bias` or NULL. */
static void columns_of(const Matrix *m, int64_t from, int64_t to, const Input *in, int64_t N, const float *bias, float *y) {
    float out[TOKENS][TILE], room[COLUMNS_TOGETHER * TOKENS];
    for (int64_t n = 0; n < N; n += TOKENS) {
        int64_t rows[TOKENS];
        int T = (int)smaller(TOKENS, N - n);
        for (int t = 0; t < T; t++) rows[t] = n + t;
        Input own = laid(in, rows, T, room);
        for (int64_t tile = from; tile < to; tile++) {
            times(m, tile, &own, rows, T, out);
            int64_t left = m->rows - tile * TILE;
            for (int t = 0; t < T; t++) {
                V value = v_load(out[t]);
                if (bias) value = v_add(value, v_load_up_to(bias + tile * TILE, left));
                v_store_up_to(y + (n + t) * m->rows + tile * TILE, value, left);
            }
        }
    }
}

static int linear(const Rows *r, const Matrix *m, const float *bias) {
    Input in = make_input(r->x, r->N, m, SCRATCH_INPUT);
    if (is_missing(&in)) return 1;
    int threads = num_threads(r->threads, m->rows * m->columns * r->N);
    int64_t tiles = tiles_of(m->rows), size = task_tiles(m, r->N, threads, 8), next = 0;
    if (in.codes && r->N == 1) quantize_row(r->x, m->columns, &in, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        if (in.codes && r->N > 1) {
#pragma omp for schedule(static)
            for (int64_t n = 0; n < r->N; n++) quantize_row(r->x + n * m->columns, m->columns, &in, n);
        }
        for (int64_t end = 0, from; (from = claim(&next, tiles, tiles, size, threads, &end)) < tiles;)
            columns_of(m, from, end, &in, r->N, bias, r->y);
    }
    return 0;
}

/* Rows between gate_up and down: floats, or codes made as soon as a group of 32 is there. */
typedef struct {
    Input in;
    int64_t width; /* F */
} Hidden;

static Hidden make_hidden(int64_t n, const Matrix *down, int slot) {
    int64_t F = down->columns;
    Hidden h = {{0}, F};
    void *memory = ling_scratch(slot, holds_values(down) ? n * F * 4 : quantized_bytes(n, F));
    if (!memory) return h;
    h.in = holds_values(down) ? (Input){memory, NULL, NULL, NULL, F, NULL} : quantized_input(memory, n, F);
    return h;
}

/* Groups of 32 hidden channels that are one task: gates of as many bytes as a long piece, ups of as many. */
enum { MOST_GROUPS = 16 };
INLINE int64_t task_groups(const Matrix *gate, int64_t rows) {
    return rows > TOKENS ? 1 : at_least_one(smaller(MOST_GROUPS, TASK_BYTES / tile_bytes(gate) / 2));
}

/* Store channels 32 * group .. of hidden row `to`, from two vectors of gates and two of ups. */
INLINE void store_hidden(const Hidden *h, int64_t group, int64_t to, V a, V b) {
    if (h->in.codes) {
        int64_t i = to * groups_of(h->width) + group;
        quantize_group(a, b, (int8_t *)h->in.codes + i * GROUP, (float *)h->in.scales + i, (int32_t *)h->in.sums + i);
        return;
    }
    float *row = (float *)h->in.values + to * h->width + group * GROUP;
    int64_t left = h->width - group * GROUP;
    v_store_up_to(row, a, left);
    if (left > 16) v_store_up_to(row + 16, b, left - 16);
}

/* Groups from..end of hidden rows to..to + T, from the rows `rows` of `in`: all gates, then all ups. */
static void gate_groups(const Matrix *gate, const Matrix *up, int64_t from, int64_t end, const Input *in,
                        const int64_t *rows, int T, const Hidden *h, int64_t to) {
    float g[2 * MOST_GROUPS][TOKENS][TILE], u[2][TOKENS][TILE], room[COLUMNS_TOGETHER * TOKENS];
    Input own = laid(in, rows, T, room);
    int64_t tiles = tiles_of(h->width);
    for (int64_t i = 2 * from; i < smaller(2 * end, tiles); i++) times(gate, i, &own, rows, T, g[i - 2 * from]);
    for (int64_t group = from; group < end; group++) {
        int halves = 2 * group + 1 < tiles ? 2 : 1;
        for (int half = 0; half < halves; half++) times(up, 2 * group + half, &own, rows, T, u[half]);
        float (*own_gates)[TOKENS][TILE] = g + 2 * (group - from);
        for (int t = 0; t < T; t++) {
            V a = v_swiglu(v_load(own_gates[0][t]), v_load(u[0][t]));
            V b = halves == 2 ? v_swiglu(v_load(own_gates[1][t]), v_load(u[1][t])) : v_set(0.0f);
            store_hidden(h, group, to + t, a, b);
        }
    }
}

/* The same of all N rows. */
static void gate_all(const Matrix *gate, const Matrix *up, int64_t from, int64_t end, const Input *in, int64_t N,
                     const Hidden *h) {
    for (int64_t n = 0; n < N; n += TOKENS) {
        int64_t rows[TOKENS];
        int T = (int)smaller(TOKENS, N - n);
        for (int t = 0; t < T; t++) rows[t] = n + t;
        gate_groups(gate, up, from, end, in, rows, T, h, n);
    }
}

static int mlp(const Rows *r, const Mlp *w) {
    Input in = make_input(r->x, r->N, &w->gate, SCRATCH_INPUT);
    Hidden h = make_hidden(r->N, &w->down, SCRATCH_HIDDEN);
    if (is_missing(&in) || is_missing(&h.in)) return 1;
    int threads = num_threads(r->threads, 3 * w->down.rows * w->down.columns * r->N);
    int64_t groups = groups_of(h.width), tiles = tiles_of(w->down.rows), size = task_tiles(&w->down, r->N, threads, 8);
    int64_t most = task_groups(&w->gate, r->N), next = 0;
    if (in.codes && r->N == 1) quantize_row(r->x, w->gate.columns, &in, 0);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        if (in.codes && r->N > 1) {
#pragma omp for schedule(static)
            for (int64_t n = 0; n < r->N; n++) quantize_row(r->x + n * w->gate.columns, w->gate.columns, &in, n);
        }
        for (int64_t end = 0, from; (from = claim(&next, groups, groups, most, threads, &end)) < groups;)
            gate_all(&w->gate, &w->up, from, end, &in, r->N, &h);
#pragma omp barrier
#pragma omp for schedule(dynamic) nowait
        for (int64_t tile = 0; tile < tiles; tile += size)
            columns_of(&w->down, tile, smaller(tile + size, tiles), &h.in, r->N, NULL, r->y);
    }
    return 0;
}
