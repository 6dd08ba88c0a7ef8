/*
 * Benchmark of the ring alone: what a request costs, in time or instructions
 *
 * Knows how a case is measured and how figures are shown.  Does not know what
 * the cases do (vring-bench-queue.c).
 *
 * Time.  The clock is read directly before and directly behind the device's
 * part of each batch, so that the driver's part is not in it.  The clock's own
 * cost is measured in the same way, in each round, and subtracted.  Reading
 * the clock waits for the instructions before it, so that a batch does not
 * overlap with what comes before or after: figures of small batches are upper
 * bounds.  A round goes through all cases, each on memory of its own; medians
 * over the rounds do not mind the moments in which the machine did something
 * else.  A neighbour that shares the core doubles all figures, though: the
 * minimum is near to what the same machine would give if it were quiet.
 *
 * Instructions.  Under callgrind, which counts between the same two points:
 *
 *   valgrind --tool=callgrind --collect-atstart=no --combine-dumps=yes \
 *       vring-bench --count
 *
 * writes a dump per case, whose trigger is the case's name; the program itself
 * prints how many units (mostly requests) each dump is about.  As the counts
 * are always the same, they show on any machine what made the ring slower,
 * unless it was memory: a cache miss or a page fault is no instruction.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <time.h>
#include <valgrind/callgrind.h>
#include "vring-bench-queue.h"

/* Units of work in a round of a case: some 100 us, a whole number of rings */
#define ROUND_UNITS 4096

/* Batches before a round, for caches, the allocator, and the linker */
#define WARM_UP 8

/* The measurement's own cost is the median of so many runs. */
#define NOTHING_RUNS 9
#define NOTHING_BATCHES 256

#define DEFAULT_ROUNDS 101
#define MAX_ROUNDS 100000
#define ROUNDS_NOT_GIVEN G_MININT

typedef struct Options {
    gboolean count;
    gboolean tsv;
    gboolean list;
    gint rounds;
    gchar **names;              /* NULL: all cases */
} Options;

/* Sorted figures of a case, in ns per unit */
typedef struct Figures {
    double median;
    double lower;               /* quartiles */
    double upper;
    double min;
} Figures;

static unsigned batches_of(const RingCase *c)
{
    return ROUND_UNITS / MAX(c->units, c->batch);
}

static RingQueue *warm_queue(const RingCase *c)
{
    RingQueue *q = ring_queue_new(c);

    for (unsigned i = 0; i < WARM_UP; i++) {
        ring_queue_begin(q);
        c->measured(q);
        ring_queue_end(q);
    }
    return q;
}

/* Time */

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* Returns ns per batch, the clock included */
static double time_batches(const RingCase *c, unsigned batches)
{
    RingQueue *q = warm_queue(c);
    int64_t sum = 0;

    for (unsigned i = 0; i < batches; i++) {
        int64_t begin;

        ring_queue_begin(q);
        begin = now_ns();
        c->measured(q);
        sum += now_ns() - begin;
        ring_queue_end(q);
    }
    ring_queue_free(q);
    return (double)sum / batches;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static Figures figures_of(double *ns, unsigned n)
{
    qsort(ns, n, sizeof(*ns), compare_doubles);
    return (Figures) {
        .median = ns[n / 2],
        .lower = ns[n / 4],
        .upper = ns[n - 1 - n / 4],
        .min = ns[0],
    };
}

/*
 * What the measurement itself costs per batch.  It is subtracted from figures
 * that may be smaller, and one interrupt would spoil it.
 */
static double time_nothing(void)
{
    double ns[NOTHING_RUNS];

    for (unsigned i = 0; i < NOTHING_RUNS; i++) {
        ns[i] = time_batches(&ring_nothing, NOTHING_BATCHES);
    }
    return figures_of(ns, NOTHING_RUNS).median;
}

/* Fills in a column of @ns, which has @rounds figures per case */
static void time_round(const RingCase *const *cases, double *ns,
                       unsigned round, unsigned rounds)
{
    double nothing = time_nothing();

    for (unsigned i = 0; cases[i]; i++) {
        const RingCase *c = cases[i];

        ns[i * rounds + round] = (time_batches(c, batches_of(c)) - nothing) /
                                 c->units;
    }
}

static void print_header(bool tsv)
{
    if (tsv) {
        printf("case\tunit\tmedian\tlower\tupper\tmin\n");
    } else {
        printf("%-28s %9s %9s %9s %9s  %s\n", "ns", "median", "lower q.",
               "upper q.", "min", "per");
    }
}

static void print_figures(const RingCase *c, const Figures *f, bool tsv)
{
    if (tsv) {
        printf("%s\t%s\t%.2f\t%.2f\t%.2f\t%.2f\n", c->name, c->unit,
               f->median, f->lower, f->upper, f->min);
    } else {
        printf("%-28s %9.1f %9.1f %9.1f %9.1f  %s\n", c->name, f->median,
               f->lower, f->upper, f->min, c->unit);
    }
}

static void print_headline(const Figures *f)
{
    printf("\nPop and push with an indirect chain of three, batches of 32: "
           "%.1f ns, at best %.1f\n(target: at most %.0f)\n",
           f->median, f->min, RING_TARGET_NS);
}

static void time_cases(const RingCase *const *cases, unsigned n,
                       const Options *opts)
{
    unsigned rounds = opts->rounds;
    g_autofree double *ns = g_new(double, (size_t)n * rounds);

    for (unsigned round = 0; round < rounds; round++) {
        time_round(cases, ns, round, rounds);
    }
    print_header(opts->tsv);
    for (unsigned i = 0; i < n; i++) {
        Figures f = figures_of(&ns[i * rounds], rounds);

        print_figures(cases[i], &f, opts->tsv);
    }
    for (unsigned i = 0; i < n && !opts->tsv; i++) {
        if (g_str_equal(cases[i]->name, RING_HEADLINE)) {
            Figures f = figures_of(&ns[i * rounds], rounds);

            print_headline(&f);
        }
    }
}

/* Instructions */

static void count_case(const RingCase *c, unsigned rounds)
{
    RingQueue *q = warm_queue(c);
    unsigned batches = batches_of(c) * rounds;

    for (unsigned i = 0; i < batches; i++) {
        ring_queue_begin(q);
        CALLGRIND_TOGGLE_COLLECT;
        c->measured(q);
        CALLGRIND_TOGGLE_COLLECT;
        ring_queue_end(q);
    }
    CALLGRIND_DUMP_STATS_AT(c->name);
    printf("%s\t%s\t%u\n", c->name, c->unit, batches * c->units);
    ring_queue_free(q);
}

static void count_cases(const RingCase *const *cases, const Options *opts)
{
    for (unsigned i = 0; cases[i]; i++) {
        count_case(cases[i], opts->rounds);
    }
}

/* The command line */

static void G_GNUC_NORETURN bad_usage(const char *what, const char *detail)
{
    fprintf(stderr, "vring-bench: %s%s (see vring-bench --help)\n", what,
            detail);
    exit(2);
}

static void parse_options(Options *opts, int argc, char **argv)
{
    const GOptionEntry entries[] = {
        { "count", 0, 0, G_OPTION_ARG_NONE, &opts->count,
          "run once under callgrind, and print the units of each case", NULL },
        { "rounds", 0, 0, G_OPTION_ARG_INT, &opts->rounds,
          "how often to go through the cases (default: "
          G_STRINGIFY(DEFAULT_ROUNDS) ", with --count 1)", "N" },
        { "tsv", 0, 0, G_OPTION_ARG_NONE, &opts->tsv,
          "print tab-separated values", NULL },
        { "list", 0, 0, G_OPTION_ARG_NONE, &opts->list,
          "print the names of the cases", NULL },
        { G_OPTION_REMAINING, 0, 0, G_OPTION_ARG_STRING_ARRAY, &opts->names,
          NULL, "[CASE...]" },
        { }
    };
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) err = NULL;

    g_option_context_set_summary(context,
        "Shows what the ring alone costs per request, in one thread with warm "
        "caches.");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &err)) {
        bad_usage(err->message, "");
    }
    if (opts->rounds == ROUNDS_NOT_GIVEN) {
        opts->rounds = opts->count ? 1 : DEFAULT_ROUNDS;
    }
    if (opts->rounds < 1 || opts->rounds > MAX_ROUNDS) {
        bad_usage("--rounds must be from 1 to ", G_STRINGIFY(MAX_ROUNDS));
    }
}

static const RingCase *find_case(const char *name)
{
    for (const RingCase *c = ring_cases; c->name; c++) {
        if (g_str_equal(c->name, name)) {
            return c;
        }
    }
    bad_usage("there is no case ", name);
}

/* Returns the cases that are wanted, NULL at the end */
static GPtrArray *choose_cases(gchar **names)
{
    GPtrArray *cases = g_ptr_array_new();

    if (names) {
        for (gchar **name = names; *name; name++) {
            g_ptr_array_add(cases, (gpointer)find_case(*name));
        }
    } else {
        for (const RingCase *c = ring_cases; c->name; c++) {
            g_ptr_array_add(cases, (gpointer)c);
        }
    }
    g_ptr_array_add(cases, NULL);
    return cases;
}

int main(int argc, char **argv)
{
    Options opts = { .rounds = ROUNDS_NOT_GIVEN };
    g_autoptr(GPtrArray) chosen = NULL;
    const RingCase *const *cases;

    parse_options(&opts, argc, argv);
    chosen = choose_cases(opts.names);
    g_strfreev(opts.names);
    cases = (const RingCase *const *)chosen->pdata;
    if (opts.list) {
        for (unsigned i = 0; cases[i]; i++) {
            printf("%s\n", cases[i]->name);
        }
    } else if (opts.count) {
        count_cases(cases, &opts);
    } else {
        time_cases(cases, chosen->len - 1, &opts);
    }
    return 0;
}
