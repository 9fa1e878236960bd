/* Attention from new tokens to the blocks of a cache.
 *
 * Keys are taken in pieces of SPLIT that begin at multiples of SPLIT. Each piece has a softmax of its own; pieces are
 * joined in order, so that it does not matter which thread made which, or how many rows were asked for together.
 *
 * Few rows (decoding, verifying drafts) are bound by memory: a task takes all heads, so that the cache is read in one
 * rising stream. Many rows are bound by arithmetic: a task takes one head and about QUERIES_EACH queries, for which
 * keys and values are copied once to where they lie side by side.
 */

enum { FEW_ROWS = 4, QUERIES_EACH = 128 };
enum { MOST_KEPT = 1 << 24 }; /* floats of pieces that wait to be joined */

static void join(Seen *to, float *out, Seen piece, const float *values, int64_t D) {
    float most = to->most > piece.most ? to->most : piece.most, both[16] = {to->most - most, piece.most - most};
    v_store(both, v_exp(v_load(both)));
    float before = to->sum > 0 ? both[0] : 0.0f, now = both[1];
    for (int64_t d = 0; d < D; d += 16)
        v_store(out + d, v_fma(v_set(now), v_load(values + d), v_mul(v_set(before), v_load(out + d))));
    to->sum = to->sum * before + piece.sum * now;
    to->most = most;
}

/* Where the output of query i of a task's head lies, beside where it lies itself. */
INLINE int64_t query_offset(const Task *t, int64_t head, int64_t i) {
    int64_t each = t->p->A / t->p->K;
    return ((t->row + i / each) * t->p->A + (t->head + head) * each + i % each) * t->p->D;
}

static void begin_task(const Task *t, const Desk *desk, const Rows *r) {
    for (int64_t h = 0; h < t->heads; h++)
        for (int64_t i = 0; i < t->room; i++) desk->q[h * t->room + i] = r->x + query_offset(t, h, smaller(i, t->n - 1));
}

/* Join pieces, one after the other; `seen` and `values` are laid out as on a desk. */
static void begin_output(const Task *t, Seen *seen, const Rows *r) {
    for (int64_t h = 0; h < t->heads; h++)
        for (int64_t i = 0; i < t->n; i++) {
            seen[h * t->room + i] = (Seen){-INFINITY, 0.0f};
            memset(r->y + query_offset(t, h, i), 0, (size_t)t->p->D * sizeof(float));
        }
}
static void add_piece(const Task *t, Seen *seen, const Seen *now, const float *values, const Rows *r) {
    int64_t D = t->p->D;
    for (int64_t h = 0; h < t->heads; h++)
        for (int64_t i = 0, at = h * t->room; i < t->n; i++, at++)
            if (now[at].sum > 0 || now[at].sum != now[at].sum) /* or not a number */
                join(&seen[at], r->y + query_offset(t, h, i), now[at], values + at * D, D);
}
static void end_output(const Task *t, const Seen *seen, const Rows *r) {
    for (int64_t h = 0; h < t->heads; h++)
        for (int64_t i = 0; i < t->n; i++) {
            float *out = r->y + query_offset(t, h, i);
            for (int64_t d = 0; d < t->p->D; d += 16)
                v_store(out + d, v_div(v_load(out + d), v_set(seen[h * t->room + i].sum)));
        }
}

/* Tasks of all sequences, longest last; `apart`: those of few rows, too, take one head each. NULL `to`: count them. */
static int64_t make_tasks(const Paged *p, int apart, Task *to) {
    int64_t each = p->A / p->K, count = 0, row = 0, usual = QUERIES_EACH / each;
    usual = usual > FEW_ROWS ? usual : FEW_ROWS;
    for (int64_t b = 0; b < p->B; b++) {
        int64_t new = p->spans[3 * b], held = p->spans[3 * b + 1], heads = new > FEW_ROWS || apart ? 1 : p->K;
        for (int64_t i = 0; i < new; i += usual)
            for (int64_t h = 0; h < p->K; h += heads, count++) {
                int64_t rows = smaller(usual, new - i), n = rows * each;
                Task task = {p, p->tables + b * p->T, row + i, rows, held - new + i, p->spans[3 * b + 2], h, heads, n,
                             (n + QUERIES - 1) / QUERIES * QUERIES};
                if (to) to[count] = task;
            }
        row += new;
    }
    return count;
}

static Desk lay_desk(float *memory, int64_t queries, int64_t D) {
    Desk d;
    d.scores = (float(*)[SPAN])memory, memory += queries * SPAN;
    d.values = memory, memory += queries * D;
    d.copied = memory, memory += MANY_KEYS * D;
    d.scales = memory, memory += SPAN;
    d.seen = (Seen *)memory, memory += 2 * queries;
    d.now = (Seen *)memory, memory += 2 * queries;
    d.slots = (int64_t *)memory, memory += 2 * SPLIT;
    d.q = (const float **)memory;
    return d;
}
static int64_t desk_floats(int64_t queries, int64_t D) {
    return (queries * (SPAN + D + 6) + MANY_KEYS * D + SPAN + 2 * SPLIT + 15) / 16 * 16;
}

static int attend(const Rows *r, const Paged *p) {
    if (p->k) hold_rows(r, p);
    int64_t D = p->D, most_pieces = 1, work = 0, shared = 0;
    for (int64_t b = 0; b < p->B; b++) {
        int64_t held = p->spans[3 * b + 1], pieces = (held + SPLIT - 1) / SPLIT;
        work += p->spans[3 * b] * held * p->A * D * 2;
        most_pieces = pieces > most_pieces ? pieces : most_pieces;
        shared += pieces;
    }
    int threads = num_threads(r->threads, work);
    int apart = threads > 1 && shared < 4 * threads;
    int64_t count = make_tasks(p, apart, NULL), queries = 0;
    Task *tasks = ling_scratch(SCRATCH_MISC, (count + 1) * (int64_t)sizeof(Task));
    if (!tasks) return 1;
    make_tasks(p, apart, tasks);
    for (int64_t i = 0; i < count; i++)
        if (tasks[i].heads * tasks[i].room > queries) queries = tasks[i].heads * tasks[i].room;
    /* Few tasks: each piece is one, and joined afterwards. Many: a task joins its own pieces as they come. */
    int64_t kept = queries * (D + 2);
    int is_shared = threads > 1 && count < 4 * threads && count * most_pieces * kept <= MOST_KEPT;
    int64_t shares = is_shared ? most_pieces : 1;
    float *pieces = ling_scratch(SCRATCH_FLOATS, is_shared ? count * shares * kept * 4 : 4);
    float *desks = ling_scratch(SCRATCH_INPUT, threads * desk_floats(queries, D) * 4 + 64);
    if (!pieces || !desks) return 1;
    desks = (float *)(((uintptr_t)desks + 63) / 64 * 64); /* a load over two lines is two loads */

#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Desk desk = lay_desk(desks + thread_number() * desk_floats(queries, D), queries, D);
#pragma omp for schedule(dynamic)
        for (int64_t i = count * shares - 1; i >= 0; i--) {
            const Task *t = tasks + i / shares;
            int64_t used = (t->position + t->count + SPLIT - 1) / SPLIT, share = i % shares;
            if (is_shared && (share < t->first / SPLIT || share >= used)) continue;
            begin_task(t, &desk, r);
            if (is_shared) {
                Desk own = desk;
                own.now = (Seen *)(pieces + i * kept), own.values = pieces + i * kept + 2 * queries;
                attend_piece(t, &own, share);
                continue;
            }
            begin_output(t, desk.seen, r);
            for (int64_t piece = t->first / SPLIT; piece < used; piece++) {
                attend_piece(t, &desk, piece);
                add_piece(t, desk.seen, desk.now, desk.values, r);
            }
            end_output(t, desk.seen, r);
        }
        if (is_shared) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < count; i++) {
                const Task *t = tasks + i;
                int64_t used = (t->position + t->count + SPLIT - 1) / SPLIT;
                begin_output(t, desk.seen, r);
                for (int64_t piece = t->first / SPLIT; piece < used; piece++) {
                    const float *own = pieces + (i * shares + piece) * kept;
                    add_piece(t, desk.seen, (const Seen *)own, own + 2 * queries, r);
                }
                end_output(t, desk.seen, r);
            }
        }
    }
    return 0;
}
