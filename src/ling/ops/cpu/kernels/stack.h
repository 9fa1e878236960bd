/* All layers of a model, and the norm behind them, in one call: between two layers nobody else is asked anything. */

/* Memory between the parts of a layer, kept for the next one. */
typedef struct {
    float *x, *normed, *q, *k, *v, *seen, *y, *joined, *cos, *sin;
    int64_t *slots;
    Routed routed;
} Room;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int make_room(Room *room, const Stack *s, int64_t N) {
    int64_t queries = 0, keys = 0, E = 0, k = 0, H = s->H;
    for (int64_t i = 0; i < s->num_layers; i++) {
        const Layer *l = s->layers + i;
        queries = larger(queries, l->heads.A * l->heads.D), keys = larger(keys, l->heads.K * l->heads.D);
        E = larger(E, l->moe.E), k = larger(k, l->moe.k);
    }
    int64_t floats = N * (2 * H + 2 * queries + 2 * keys + (s->join.codes ? 3 * H : 0) + E + k + s->rotated);
    int64_t *memory = ling_scratch(SCRATCH_STACK, 8 * (N * k + E + N) + 4 * floats);
    if (!memory) return 1;
    room->routed.ids = memory, room->routed.counts = memory + N * k, room->slots = room->routed.counts + E;
    room->normed = (float *)(room->slots + N);
    room->y = room->normed + N * H;
    room->q = room->y + N * H, room->seen = room->q + N * queries;
    room->k = room->seen + N * queries, room->v = room->k + N * keys;
    room->routed.weights = room->v + N * keys, room->routed.logits = room->routed.weights + N * k;
    room->cos = room->routed.logits + N * E, room->sin = room->cos + N * (s->rotated / 2);
    room->joined = room->sin + N * (s->rotated / 2), room->x = room->joined + 2 * N * H;
    return 0;
}

static void embed(const Stack *s, int64_t token, float *x) {
    if (s->kind == HELD_FLOAT32)
        memcpy(x, (const float *)s->embedding + token * s->H, (size_t)s->H * 4);
    else
        for (int64_t i = 0; i < s->H; i++) x[i] = float_of_bfloat(((const uint16_t *)s->embedding)[token * s->H + i]);
}

/* Embeddings, rotations and slots of the new rows; 3 where a token or a position is none. */
static int begin_rows(const Stack *s, const Step *step, const Room *room, float *x) {
    int64_t n = 0, half = s->rotated / 2, P = s->layers->cache.P;
    for (int64_t b = 0; b < step->B; b++) {
        const int64_t *span = step->spans + 3 * b, *table = step->tables + b * step->T;
        for (int64_t at = span[1] - span[0]; at < span[1]; at++, n++) {
            int64_t token = step->tokens[n], position = larger(at - s->lag, 0);
            if (token < 0 || token >= s->V || position >= s->positions) return 3;
            room->slots[n] = table[at / P] * P + at % P;
            memcpy(room->cos + n * half, s->cos + position * half, (size_t)half * 4);
            memcpy(room->sin + n * half, s->sin + position * half, (size_t)half * 4);
            embed(s, token, x + n * s->H);
        }
    }
    return 0;
}

static void add(float *x, const float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) v_store_up_to(x + i, v_add(v_load_up_to(x + i, n - i), v_load_up_to(y + i, n - i)), n - i);
}

/* What the MTP layer begins with: the norms of embedding and hidden state side by side, projected. */
static int join_hidden(const Rows *r, const Stack *s, const float *hidden, const Room *room) {
    for (int64_t n = 0; n < r->N; n++) {
        norm_row(room->x + n * s->H, s->embedding_norm, s->H, (float)s->eps, room->joined + 2 * n * s->H);
        norm_row(hidden + n * s->H, s->hidden_norm, s->H, (float)s->eps, room->joined + (2 * n + 1) * s->H);
    }
    Rows joined = {room->joined, r->y, r->N, r->threads};
    return linear(&joined, &s->join, NULL);
}

static int run_layer(const Rows *r, const Stack *s, const Layer *l, const Step *step, const Room *room) {
    int64_t N = r->N, H = s->H, threads = r->threads;
    float *x = r->y;
    Rows norm = {x, room->normed, N, threads}, inner = {room->normed, room->y, N, threads};
    Rows queries = {room->q, room->seen, N, threads}, seen = {room->seen, room->y, N, threads};
    Paged cache = l->cache;
    cache.k = room->k, cache.v = room->v, cache.slots = room->slots;
    cache.tables = step->tables, cache.spans = step->spans, cache.B = step->B, cache.T = step->T;
    rms_norm(&norm, l->input_norm, H, s->eps);
    if (heads(&inner, &l->heads, room->cos, room->sin, room->q, room->k, room->v)) return 1;
    if (attend(&queries, &cache) || linear(&seen, &l->dense, l->dense_bias)) return 1;
    add(x, room->y, N * H);
    rms_norm(&norm, l->post_norm, H, s->eps);
    if (l->moe.E ? moe(&inner, &l->moe, &room->routed) : mlp(&inner, &l->mlp)) return 1;
    add(x, room->y, N * H);
    return 0;
}

/* r->y (N, H) becomes what the head reads; r->x is nothing. */
static int stack(const Rows *r, const Stack *s, const Step *step) {
    Room room;
    int64_t n = r->N * s->H;
    if (make_room(&room, s, r->N)) return 1;
    if (begin_rows(s, step, &room, s->join.codes ? room.x : r->y)) return 3;
    if (s->join.codes && join_hidden(r, s, step->hidden, &room)) return 1;
    for (int64_t i = 0; i < s->num_layers; i++)
        if (run_layer(r, s, s->layers + i, step, &room)) return 1;
    Rows last = {r->y, r->y, r->N, r->threads};
    rms_norm(&last, s->final_norm, s->H, s->eps);
    V poison = v_set(0.0f);
    for (int64_t i = 0; i < n; i += 16) poison = v_fma(v_load_up_to(r->y + i, n - i), v_set(0.0f), poison);
    return v_sum(poison) == 0.0f ? 0 : 2;
}
