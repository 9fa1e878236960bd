/* Drafts by an MTP layer that goes on with its own output: the head, a choice, the layer, and so on, in one call. */

/* The step's rows first; then chosen (count, most). */
static int propose(const Rows *r, const Stack *s, const Step *step, const Drafts *d, int64_t *chosen) {
    int64_t B = d->count, H = s->H, V = d->head->rows, threads = r->threads;
    int64_t *tokens = ling_scratch(SCRATCH_DRAFTS, 8 * 4 * B + 4 * (r->N * H + 2 * B * H + B * V));
    if (!tokens) return 1;
    int64_t *spans = tokens + B;
    float *seen = (float *)(spans + 3 * B), *hidden = seen + r->N * H, *next = hidden + B * H, *logits = next + B * H;
    Rows rows = {NULL, seen, r->N, threads};
    int found = stack(&rows, s, step);
    for (int64_t b = 0, end = 0; b < B; b++) {
        const int64_t *own = step->spans + 3 * b;
        end += own[0];
        memcpy(hidden + b * H, seen + (end - 1) * H, (size_t)H * 4);
        spans[3 * b] = 1, spans[3 * b + 1] = own[1], spans[3 * b + 2] = own[2];
    }
    for (int64_t depth = 0; depth < d->most; depth++) {
        if (found == 1 || found == 3) return found; /* a draft that is not finite is a draft that is wrong */
        Rows read = {hidden, logits, B, threads}, scored = {logits, NULL, B, threads};
        Chance chance = {d->temperatures, d->keys + depth * B};
        Wanted wanted = {NULL, chance, d->read_again};
        if (d->sketch ? shortlist(&read, d->head, d->sketch, &wanted) : linear(&read, d->head, NULL)) return 1;
        if (choose_tokens(&scored, V, &chance, tokens)) return 1;
        for (int64_t b = 0; b < B; b++) chosen[b * d->most + depth] = tokens[b], spans[3 * b + 1]++;
        if (depth + 1 == d->most) return 0;
        Rows layer = {NULL, next, B, threads};
        Step one = {hidden, tokens, step->tables, spans, B, step->T};
        found = stack(&layer, s, &one);
        float *held = hidden;
        hidden = next, next = held;
    }
    return found == 1 || found == 3 ? found : 0;
}
